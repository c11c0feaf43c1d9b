package lazymig_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/lazymig/lazymig"

// layers is the table of ARCHITECTURE.md, from the top down: a package imports
// packages of lower layers only, never one beside it or above. Data flows the
// same way. A new package gets a line here.
var layers = [][]string{
	{"cmd/lazymig", "cmd/lazymig-demo", "cmd/lazymig-bench", "e2e", "bench", "setup/install"},
	{"migrate"},
	{"dump", "restore", "lazyfs/store"},
	{"lazyfs", "pagesrv", "remotefs", "preflight", "ahead", "hot", "restore/memory", "restore/detach", "lab"},
	{"internal/parts", "internal/unit"},
	{"images", "keys", "internal/criu", "internal/sqlite", "internal/kerneltest", "internal/fsmodel"},
	{"setup", "wire", "internal/fdpass", "internal/pagemap", "internal/urgent", "internal/lograte", "internal/confine", "internal/budget", "internal/park"},
}

// beside are imports within a layer that are meant.
var beside = map[string][]string{
	"lazyfs": {"remotefs"}, // the types of its client, whose interface lazyfs declares itself
}

// testOnly are packages that no program may contain.
var testOnly = []string{"internal/kerneltest"}

type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// list asks the go command for every package of the module.
func list(t *testing.T) []pkg {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// layerOf returns the index of a package's layer, or -1.
func layerOf(name string) int {
	return slices.IndexFunc(layers, func(l []string) bool { return slices.Contains(l, name) })
}

func TestImportDirection(t *testing.T) {
	all := list(t)
	if len(all) < 10 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	for _, p := range all {
		name, inside := strings.CutPrefix(p.ImportPath, module+"/")
		if !inside {
			continue // the root holds this test only
		}
		from := layerOf(name)
		if from < 0 {
			t.Errorf("package %s is in no layer: add a line to the table in arch_test.go", name)
			continue
		}
		for _, i := range p.Imports {
			check(t, name, from, i, false)
		}
		for _, i := range append(p.TestImports, p.XTestImports...) {
			check(t, name, from, i, true)
		}
	}
}

// check tells an import that runs up or sideways. Tests may import what lies
// beside their package, and the lab and kerneltest from anywhere.
func check(t *testing.T, name string, from int, path string, test bool) {
	t.Helper()
	target, inside := strings.CutPrefix(path, module+"/")
	if !inside || target == name {
		return
	}
	if slices.Contains(testOnly, target) {
		if !test {
			t.Errorf("%s imports %s outside its tests", name, target)
		}
		return
	}
	if test && target == "lab" {
		return
	}
	to := layerOf(target)
	switch {
	case to < 0: // reported by itself
	case to > from || slices.Contains(beside[name], target):
	case to == from && test:
	case to == from:
		t.Errorf("%s imports %s, which lies beside it", name, target)
	default:
		t.Errorf("%s imports %s, which lies above it", name, target)
	}
}

// No package is a bag of things.
func TestNoGrabBags(t *testing.T) {
	for _, p := range list(t) {
		for _, bad := range []string{"util", "utils", "common", "helpers", "misc"} {
			if slices.Contains(strings.Split(p.ImportPath, "/"), bad) {
				t.Errorf("package %s: %q says nothing about what is in it", p.ImportPath, bad)
			}
		}
	}
}
