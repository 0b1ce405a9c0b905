//go:build linux

package vm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// writeInitramfs packs the guest's init and the modules it needs to reach its root. modules.list names them in the
// order of loading.
func writeInitramfs(ctx context.Context, path, initBinary string, k kernel) error {
	order, err := moduleOrder(k.modules(), bootModules)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	archive := &cpio{w: w}
	program, err := os.ReadFile(initBinary)
	if err != nil {
		return err
	}
	archive.file("init", program, 0o100755)
	for _, d := range []string{"dev", "proc", "modules", "root"} {
		archive.file(d, nil, 0o040755)
	}
	var list strings.Builder
	for _, module := range order {
		data, err := readModule(ctx, filepath.Join(k.modules(), module))
		if err != nil {
			return err
		}
		name := "modules/" + strings.TrimSuffix(filepath.Base(module), ".xz")
		fmt.Fprintln(&list, "/"+name)
		archive.file(name, data, 0o100644)
	}
	archive.file("modules.list", []byte(list.String()), 0o100644)
	archive.file("TRAILER!!!", nil, 0)
	if archive.err != nil {
		return archive.err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

func readModule(ctx context.Context, path string) ([]byte, error) {
	if !strings.HasSuffix(path, ".xz") {
		return os.ReadFile(path)
	}
	out, err := output(ctx, "", "xz", "-dc", path)
	return []byte(out), err
}

// moduleOrder returns the files of the modules and of all they depend on, dependencies first. Modules that are built
// into the kernel are left out.
func moduleOrder(dir string, names []string) ([]string, error) {
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	moduleName := func(file string) string {
		name, _, _ := strings.Cut(filepath.Base(file), ".ko")
		return strings.ReplaceAll(name, "-", "_")
	}
	deps := make(map[string][]string) // by module name: its file, then what it needs, directly or not
	for line := range strings.Lines(string(dep)) {
		file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
		deps[moduleName(file)] = append([]string{file}, strings.Fields(needs)...)
	}
	for file := range strings.Lines(string(builtin)) {
		if name := moduleName(strings.TrimSpace(file)); deps[name] == nil {
			deps[name] = []string{}
		}
	}
	// crc32c is asked for by name through the crypto API, so no modules.dep entry leads to it.
	var order []string
	for _, name := range slices.Concat([]string{"crc32c_generic", "crc32c_intel"}, names) {
		files, ok := deps[name]
		if !ok {
			return nil, fmt.Errorf("%s has no module %s", dir, name)
		}
		for _, file := range slices.Backward(files) {
			if !slices.Contains(order, file) {
				order = append(order, file)
			}
		}
	}
	return order, nil
}

// cpio writes an archive in the "newc" format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	w     io.Writer
	inode int
	err   error
}

func (c *cpio) file(name string, data []byte, mode uint32) {
	c.inode++
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", c.inode, mode, 0, 0, 1, 0,
		len(data), 0, 0, 0, 0, len(name)+1, 0)
	c.write([]byte(header + name + "\x00"))
	c.write(make([]byte, -(len(header)+len(name)+1)&3))
	c.write(data)
	c.write(make([]byte, -len(data)&3))
}

func (c *cpio) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
}
