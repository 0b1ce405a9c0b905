// Package target is 'hawser target': exporting local storage over NVMe/TCP.
package target

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/volume"
)

// New returns the command with its verbs.
func New(f *factory.Factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "target",
		Short: "Export local storage over NVMe/TCP",
		Long: `Exports files, block devices and memory as NVMe namespaces, with a discovery service on every portal. It needs neither
root nor a kernel module, other than access to what is exported.`,
		Example: "  hawser target serve --listen 127.0.0.1 --export disk.img --allow-any-host",
	}
	cmd.AddCommand(newServe(f), newList(f))
	return cmd
}

const service = "target"

// socketDir is where targets have their control sockets, named after their process IDs, unless they are told otherwise.
func socketDir(f *factory.Factory) string {
	return filepath.Join(volume.StateDir(f), "target")
}

const socketSuffix = ".sock"

func socketOf(dir string, pid int) string { return filepath.Join(dir, strconv.Itoa(pid)+socketSuffix) }

// findSockets returns process ID → socket of the targets in a folder, the dead ones included.
func findSockets(dir string) (map[int]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	sockets := make(map[int]string)
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), socketSuffix); ok && e.Type() == fs.ModeSocket {
			if pid, err := strconv.Atoi(name); err == nil && pid > 0 {
				sockets[pid] = filepath.Join(dir, e.Name())
			}
		}
	}
	return sockets, err
}
