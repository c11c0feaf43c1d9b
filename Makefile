# Each target is one line; `make check` is what CI runs.
PACKAGES = acl attr fio fuse3 gcc iproute2 libc6-dev nftables nginx-light nodejs openjdk-17-jre-headless patchelf postgresql procps python3 redis-server systemd util-linux
RACE = ./wire ./images ./keys ./pagesrv ./preflight ./remotefs ./internal/fdpass ./internal/kerneltest ./setup
UNIT = $(shell go list ./... | grep -v -x -e '.*/e2e' $(RACE:./%=-e '.*/lazymig/%'))
TOOL = go tool -modfile=tools.mod
FUZZTIME ?= 60s
BENCH ?=

.PHONY: all build setup demo test unit race e2e test-faults soak test-seeded compare-cut vet lint vuln fmt fuzz bench bench-quick bench-files check clean
all: build
build: ; CGO_ENABLED=0 go build -trimpath -o bin/lazymig ./cmd/lazymig
setup: ; @go run ./setup/install $(PACKAGES)
demo: setup build ; CGO_ENABLED=0 go build -trimpath -o bin/lazymig-demo ./cmd/lazymig-demo && bin/lazymig-demo
test: setup build vet race unit e2e
unit: ; go test -p 1 -count=1 -timeout 15m $(UNIT)
race: ; go test -race -p 1 -count=1 -timeout 15m $(RACE)
e2e: build ; test ! -d e2e || go test -count=1 -timeout 20m -v ./e2e
test-faults: build ; LAZYMIG_FAULTS=$${LAZYMIG_FAULTS:-half} go test -count=1 -timeout 30m -parallel 4 -v -run "^TestFaults" ./e2e
test-seeded: build ; go test -count=1 -tags seeded -timeout 15m -v -run '^TestSeeded$$' ./e2e
soak: build ; LAZYMIG_SOAK=100 go test -count=1 -timeout 25m -v -run '^TestSoak$$' ./e2e
vet: ; go vet ./... && bad=$$(gofmt -l .) && test -z "$$bad" || { echo "gofmt: $$bad"; exit 1; }
lint: ; $(TOOL) golangci-lint run
vuln: ; $(TOOL) govulncheck ./...
fmt: ; $(TOOL) golangci-lint fmt
fuzz: ; @for p in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$p | grep ^Fuzz); do go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p || exit 1; done; done
bench: setup build ; go run ./cmd/lazymig-bench $(BENCH)
compare-cut: setup build ; go run ./cmd/lazymig-bench cut
bench-quick: setup build ; go run ./cmd/lazymig-bench -quick
bench-files: ; @go run ./setup/install $(PACKAGES) git openssh-server sshfs && go run ./cmd/lazymig-bench files
check: test
clean: ; rm -rf bin
