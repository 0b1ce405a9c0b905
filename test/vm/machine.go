//go:build linux

package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hawser.dev/hawser/test/vm/guest"
)

// localDriveSize is the size of every guest's local NVMe drive in bytes.
const localDriveSize = 1 << 30

// Options say what a guest has beside its root and its local NVMe drive.
type Options struct {
	// NICPairs adds pairs of network cards, each pair wired together, so that one of them, moved to a network
	// namespace, is the far end of a cable that can be cut.
	NICPairs int
	// Files of the host, relative to the package's folder, that cases find in guest.Share.
	Files []string
	// QEMU holds more of qemu's arguments.
	QEMU []string
}

// parameters are what a kernel needs on its command line beside what every kernel gets.
var parameters = map[string]string{
	// Before 6.12 the NVMe/TCP host checks only the first of several contiguous pages before it lends them to the socket.
	// A reader in user space on the same machine, which is where a guest has its target, then trips the kernel's check of
	// copies to user space: "Kernel memory exposure attempt detected", a panic in tcp_recvmsg.
	"6.1": "hardened_usercopy=off",
}

// errBootFlake is a boot that died in software emulation's race with the kernel patching its own text.
var errBootFlake = errors.New("the emulator broke the kernel while it booted (int3)")

// boot runs a job in a fresh guest of kernel k, writing its output to w, and returns its exit status. share is the
// host's folder that the guest has at guest.Share.
func (img *image) boot(ctx context.Context, log *slog.Logger, k kernel, job guest.Job, share, initBinary string, opts Options, w io.Writer) (int, error) {
	dir, err := os.MkdirTemp("", "hawser-vm")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	var (
		initramfs = filepath.Join(dir, "initramfs")
		console   = filepath.Join(dir, "console")
		status    = filepath.Join(dir, "status")
		drive     = filepath.Join(dir, "nvme")
	)
	if err := writeInitramfs(ctx, initramfs, initBinary, k); err != nil {
		return 0, err
	}
	data, err := json.Marshal(job)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(share, guest.JobFile), data, 0o644); err != nil {
		return 0, err
	}
	if err := os.WriteFile(drive, nil, 0o600); err != nil {
		return 0, err
	}
	if err := os.Truncate(drive, localDriveSize); err != nil {
		return 0, err
	}
	args := []string{
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536", "-machine", "q35",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", k.vmlinuz(), "-initrd", initramfs,
		"-append", "console=ttyS0 loglevel=4 oops=panic panic=-1 " + guest.Parameter + " " + parameters[k.Series],
		"-serial", "file:" + console,
		"-drive", "if=none,id=root,format=raw,snapshot=on,file=" + img.Root, "-device", "virtio-blk-pci,drive=root",
		"-drive", "if=none,id=local,format=raw,cache=unsafe,discard=unmap,file=" + drive,
		"-device", "nvme,drive=local,serial=" + guest.LocalSerial,
		"-virtfs", "local,path=" + share + ",mount_tag=" + guest.ShareTag + ",security_model=none,multidevs=remap",
		"-device", "virtio-serial-pci",
		"-chardev", "stdio,id=output,signal=off", "-device", "virtserialport,chardev=output,nr=1,name=" + guest.OutputPort,
		"-chardev", "file,id=status,path=" + status, "-device", "virtserialport,chardev=status,nr=2,name=" + guest.StatusPort,
		"-device", "virtio-rng-pci",
	}
	for i := range opts.NICPairs {
		for _, end := range []string{"a", "b"} {
			id := fmt.Sprintf("cable%d%s", i, end)
			args = append(args, "-netdev", fmt.Sprintf("hubport,id=%s,hubid=%d", id, i), "-device", "virtio-net-pci,netdev="+id)
		}
	}
	args = append(args, opts.QEMU...)

	// The kernel kills qemu when the thread that started it ends, so that no way of ending this process leaves it running.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	qemu.WaitDelay = 5 * time.Second
	qemu.Stdout = w
	// At the end of its standard input qemu would disconnect the port, and the guest's writes would block.
	if _, err := qemu.StdinPipe(); err != nil {
		return 0, err
	}
	var stderr bytes.Buffer
	qemu.Stderr = &stderr
	start := time.Now()
	err = qemu.Run()
	log.Debug("guest ended", "kernel", k.Series, "after", time.Since(start), "err", err)
	if errors.Is(err, exec.ErrNotFound) {
		return 0, errors.New("qemu-system-x86_64 is not installed: ./test/run installs it (package qemu-system-x86)")
	}
	said, _ := os.ReadFile(console)
	text := strings.TrimSpace(readString(status))
	code, parseErr := strconv.Atoi(strings.TrimPrefix(text, guest.Started))
	switch {
	case ctx.Err() != nil:
		return 0, fmt.Errorf("linux-%s: the guest was killed: %w; its console ended with:\n%s", k.Series, context.Cause(ctx), tail(string(said), 40))
	case err != nil:
		return 0, fmt.Errorf("qemu: %w: %s", err, tail(stderr.String(), 5))
	case text == "" && bootFlake.Match(said):
		return 0, errBootFlake
	case parseErr != nil:
		return 0, fmt.Errorf("linux-%s: the guest ended without an exit status; its console ended with:\n%s", k.Series, tail(string(said), 90))
	}
	return code, nil
}

var bootFlake = regexp.MustCompile(`Oops: int3|int3: 0000`)

func readString(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}
