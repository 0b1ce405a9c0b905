//go:build vm

package cases

import (
	"os"
	"testing"

	"hawser.dev/hawser/test/vm"
)

func TestMain(m *testing.M) {
	os.Exit(vm.Main(m, vm.Options{Files: []string{"../../../docs/nvmet-differences.md"}}))
}
