package hot

import (
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }
