// Command install is what make runs before anything that needs the system's
// help: it installs the packages named in its arguments and CRIU. It prints the
// path of CRIU last.
//
//	go run ./setup/install redis-server gcc
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/lazymig/lazymig/setup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	criu, err := setup.Run(ctx, setup.Options{Packages: os.Args[1:], Out: os.Stderr})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "install:", err)
		os.Exit(1)
	}
	fmt.Println(criu)
}
