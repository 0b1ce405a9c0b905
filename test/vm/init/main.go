//go:build linux

// Init is the first process of a guest: it loads the modules its root needs, mounts everything, runs the job the
// harness left in the share, reports its exit status and turns the machine off.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hawser.dev/hawser/test/vm/guest"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: only the first process of a guest runs this")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("init:", err)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	if err := enterRoot(); err != nil {
		return err
	}
	if err := linkUp("lo"); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	// The kernel patches itself when the first TCP socket is made, where an emulator's flake strikes: now rather than in the job.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	l.Close()

	data, err := os.ReadFile(filepath.Join(guest.Share, guest.JobFile))
	if err != nil {
		return err
	}
	// Programs paged in over the share would start slowly.
	if err := os.CopyFS(guest.Bin, os.DirFS(filepath.Join(guest.Share, "bin"))); err != nil {
		return err
	}
	var job guest.Job
	if err := json.Unmarshal(data, &job); err != nil {
		return err
	}
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: job.Now.Unix()}); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	for _, args := range [][]string{
		{"/usr/lib/systemd/systemd-udevd", "--daemon"},
		{"/usr/bin/udevadm", "trigger", "--action=add"},
	} {
		if code, err := spawn(args, os.Environ(), os.Stdout); err != nil || code != 0 {
			return fmt.Errorf("%s: status %d, %v", args[0], code, err)
		}
	}
	output, err := port(guest.OutputPort)
	if err != nil {
		return err
	}
	status, err := port(guest.StatusPort)
	if err != nil {
		return err
	}
	if _, err := status.WriteString(guest.Started); err != nil {
		return err
	}
	code, err := spawn(job.Args, append(os.Environ(), job.Env...), output)
	if err != nil {
		fmt.Fprintln(output, "init:", err)
		code = 127
	}
	if _, err := fmt.Fprintln(status, code); err != nil {
		return err
	}
	return saveLog()
}

// enterRoot loads modules.list, mounts the root and all beside it, and makes it this process's root.
func enterRoot() error {
	if err := unix.Mount("dev", "/dev", "devtmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	list, err := os.ReadFile("/modules.list")
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(list)) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		// crc32c_intel refuses a processor without SSE4.2.
		if err != nil && err != unix.EEXIST && err != unix.ENODEV {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	const root = "/dev/vda"
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Mount(root, "/root", "ext4", 0, "")
		if err == nil {
			break
		}
		if (err != unix.ENOENT && err != unix.ENXIO) || time.Now().After(deadline) {
			return fmt.Errorf("mount %s: %w", root, err)
		}
	}
	for _, m := range []struct{ source, target, kind, data string }{
		{"proc", "/root/proc", "proc", ""},
		{"sys", "/root/sys", "sysfs", ""},
		{"dev", "/root/dev", "devtmpfs", ""},
		{"run", "/root/run", "tmpfs", ""},
		{"tmp", "/root/tmp", "tmpfs", ""},
		{guest.ShareTag, "/root" + guest.Share, "9p", "trans=virtio,version=9p2000.L,msize=524288,cache=mmap"},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, 0, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	for k, v := range map[string]string{"PATH": guest.Bin + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C", "TERM": "dumb"} {
		os.Setenv(k, v)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	for _, module := range []string{"configfs", "loop"} {
		if code, err := spawn([]string{"/sbin/modprobe", module}, os.Environ(), os.Stdout); err != nil || code != 0 {
			return fmt.Errorf("modprobe %s: status %d, %v", module, code, err)
		}
	}
	if err := unix.Mount("configfs", "/sys/kernel/config", "configfs", 0, ""); err != nil {
		return fmt.Errorf("mount configfs: %w", err)
	}
	if err := unix.Mount("debugfs", "/sys/kernel/debug", "debugfs", 0, ""); err != nil {
		return fmt.Errorf("mount debugfs: %w", err)
	}
	return nil
}

func linkUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// spawn runs a program to its end, reaping whatever else ends meanwhile: the orphans of every daemon come to process 1.
func spawn(args, env []string, output *os.File) (code int, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	p, err := os.StartProcess(args[0], args, &os.ProcAttr{Env: env, Files: []*os.File{null, output, output}})
	if err != nil {
		return 0, err
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR, err == nil && pid != p.Pid:
		case err != nil:
			return 0, err
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		default:
			return ws.ExitStatus(), nil
		}
	}
}

// port opens a virtio-serial port by its name.
func port(name string) (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, path := range names {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(b)) == name {
			return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(path))), os.O_WRONLY, 0)
		}
	}
	return nil, fmt.Errorf("no virtio-serial port is called %s", name)
}

// saveLog leaves the kernel's log where the harness finds it.
func saveLog() error {
	size, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	if err != nil {
		return err
	}
	buf := make([]byte, size)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(guest.Share, "dmesg"), buf[:n], 0o644)
}
