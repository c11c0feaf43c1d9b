package restore

import (
	"fmt"
	"os"
	"testing"

	"github.com/lazymig/lazymig/dump"
	"github.com/lazymig/lazymig/internal/kerneltest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case GuardianArg:
			GuardianMain()
		case HandlerArg:
			HandlerMain()
		case agentArg:
			fmt.Fprintln(os.Stderr, agentMain(os.Args[2]))
			os.Exit(1)
		case dump.KeeperArg:
			os.Exit(dump.KeeperMain(os.Args[2:]))
		}
	}
	kerneltest.Main(m)
}
