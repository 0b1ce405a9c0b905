//go:build linux

// Package floor is the least a request and an answer over TCP can cost: raw
// non-blocking system calls on one locked, pinned thread a side, buffers warm,
// no protocol. What the queues take is measured against it in the same run.
package floor

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Pin binds the calling goroutine's thread, and all processes it starts, to a CPU.
func Pin(cpu int) error {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(0, &set)
}

// PinProcess binds all threads of this process to a CPU, and its goroutines to one thread at a time.
func PinProcess(cpu int) error {
	runtime.GOMAXPROCS(1)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	var set unix.CPUSet
	set.Set(cpu)
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err == nil {
			err = unix.SchedSetaffinity(tid, &set)
		}
		if err != nil && err != unix.ESRCH {
			return err
		}
	}
	return nil
}

// Start runs this program again, pinned to a CPU, with the environment
// added, and returns the first line that it prints. It ends with stdin.
func Start(cpu int, env ...string) (line string, stop func(), err error) {
	exe, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	cmd := exec.Command(exe, "-test.run=^$")
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	started := make(chan error)
	go func() { // on a thread of its own, which ends with its affinity
		if err := Pin(cpu); err != nil {
			started <- err
			return
		}
		started <- cmd.Start()
	}()
	if err := <-started; err != nil {
		return "", nil, err
	}
	stop = func() {
		in.Close()
		cmd.Wait()
	}
	if _, err := fmt.Fscanln(out, &line); err != nil {
		stop()
		return "", nil, fmt.Errorf("child said nothing: %w", err)
	}
	return line, stop, nil
}

// Serve listens on loopback, prints its address, and gives each connection,
// one after the other, to serve, until stdin ends.
func Serve(serve func(net.Conn)) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	fmt.Println(ln.Addr())
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		serve(c)
	}
}

// Echo answers every request of req bytes by resp bytes until the connection ends.
func Echo(conn net.Conn, req, resp int) {
	defer conn.Close()
	fd, err := rawFD(conn)
	if err != nil {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	in, out := make([]byte, 64<<10), make([]byte, 256<<10)
	have, owed := 0, 0
	for {
		n, err := recv(fd, in)
		if n == 0 && err == nil {
			return
		}
		if err != nil && err != unix.EAGAIN {
			return
		}
		have += n
		owed += have / req * resp
		have %= req
		for owed > 0 {
			n, err := send(fd, out[:min(owed, len(out))])
			if err != nil && err != unix.EAGAIN {
				return
			}
			owed -= n
			if err == unix.EAGAIN {
				break
			}
		}
	}
}

// Run keeps depth requests open for n requests and returns how long it took and, at depth 1, the median round trip.
func Run(addr string, req, resp, depth, n int) (total, p50 time.Duration, err error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	fd, err := rawFD(conn)
	if err != nil {
		return 0, 0, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	in, out := make([]byte, 256<<10), make([]byte, req*depth)
	laps := make([]int64, 0, n)
	sent, done, have, owed := 0, 0, 0, 0
	start := time.Now()
	lap := start
	room := depth
	for done < n {
		if k := min(room, n-sent); k > 0 {
			owed += k * req
			sent += k
			room -= k
		}
		for owed > 0 {
			w, err := send(fd, out[:min(owed, len(out))])
			if err == unix.EAGAIN {
				break
			}
			if err != nil {
				return 0, 0, err
			}
			owed -= w
		}
		r, err := recv(fd, in)
		if err == unix.EAGAIN {
			continue
		}
		if r == 0 || err != nil {
			return 0, 0, fmt.Errorf("connection ended: %v", err)
		}
		have += r
		k := have / resp
		have %= resp
		done += k
		room += k
		if depth == 1 && k == 1 {
			now := time.Now()
			laps = append(laps, int64(now.Sub(lap)))
			lap = now
		}
	}
	total = time.Since(start)
	return total, Median(laps), nil
}

// Median sorts laps and returns the middle one.
func Median(laps []int64) time.Duration {
	if len(laps) == 0 {
		return 0
	}
	slices.Sort(laps)
	return time.Duration(laps[len(laps)/2])
}

func rawFD(conn net.Conn) (fd int, err error) {
	t := conn.(*net.TCPConn)
	t.SetNoDelay(true)
	rc, err := t.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = rc.Control(func(p uintptr) { fd = int(p) })
	return fd, err
}

func recv(fd int, b []byte) (int, error) {
	n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
	return result(n, e)
}

func send(fd int, b []byte) (int, error) {
	n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return result(n, e)
}

func result(n uintptr, e syscall.Errno) (int, error) {
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
