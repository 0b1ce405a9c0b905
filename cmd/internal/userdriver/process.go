package userdriver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/attach/agent"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/control"
)

// An agent is two processes: a monitor, which holds the control socket and runs the worker again when it dies, and the
// worker, which holds the volumes. Both write to the log file, and hold its flock for as long as one of them lives.

// Descriptors that the processes are started with.
const (
	readyFD  = 3 // where the worker says that it serves
	socketFD = 4 // the control socket, from monitor to worker
)

// ready is the one line that a start ends with.
type ready struct {
	Error *control.Error `json:"error,omitempty"`
}

// lockLog opens an agent's log and takes its lock: then no process of that agent is alive.
func lockLog(ctx context.Context, folder string, create bool) (*os.File, error) {
	flags := os.O_RDWR | os.O_APPEND
	if create {
		flags |= os.O_CREATE
		for _, dir := range []string{filepath.Dir(folder), folder} {
			if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
		}
	}
	for {
		f, err := os.OpenFile(LogFile(folder), flags, 0o600)
		if err != nil {
			return nil, err
		}
		if err := attach.LockFile(ctx, f, false); err != nil {
			return nil, err
		}
		held, err1 := f.Stat()
		named, err2 := os.Stat(LogFile(folder))
		if err1 == nil && err2 == nil && os.SameFile(held, named) {
			return f, nil
		}
		f.Close() // removed by the agent that held it until now
		if !create {
			return nil, fs.ErrNotExist
		}
		if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
}

// start runs an agent unless it runs, and returns when it serves.
func (d *Driver) start(ctx context.Context, id string) error {
	lock, err := d.Store.LockAgent(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if c, err := control.Dial(ctx, d.control(id), service); err == nil {
		return c.Close() // another call was faster
	} else if !control.IsDown(err) {
		return err
	}
	fail := func(err error) error {
		hint := exit.Hint(err)
		if hint == "" {
			hint = "its log says more: " + LogFile(d.folder(id))
		}
		return &attach.Error{Cause: attach.CauseOf(err), Err: fmt.Errorf("agent %s does not start: %w", id, err), Hint: hint}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer r.Close()
	defer w.Close()
	folder := d.folder(id)
	log, err := lockLog(ctx, folder, true)
	if err != nil {
		os.Remove(folder) // which goes when it is empty
		return fail(err)
	}
	defer log.Close() // the processes have it too
	began := sizeOf(log)
	// The folder stays only for what its log says that the error does not: of this start, or of an agent that died before.
	undo := func(err error) error {
		said := sizeOf(log)
		log.Close()
		if said == 0 || began == 0 && exit.Hint(err) != "" {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
			defer cancel()
			d.clear(ctx, id)
		}
		return fail(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append(append([]string{}, d.Command...), "--state-dir", d.Store.Dir(), "--id", id)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return undo(err)
	}
	w.Close() // the monitor has it: its end is seen as the end of the pipe
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	if err := awaitReady(ctx, r); err != nil {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
			return undo(err)
		case <-ctx.Done():
			return fail(err)
		}
	}
	return nil
}

// sizeOf is 1 where it cannot be known: such a file is not taken for an empty one.
func sizeOf(f *os.File) int64 {
	st, err := f.Stat()
	if err != nil {
		return 1
	}
	return st.Size()
}

func awaitReady(ctx context.Context, r *os.File) error {
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	const most = 64 << 10
	line, err := bufio.NewReader(io.LimitReader(r, most)).ReadBytes('\n')
	var msg ready
	switch {
	case ctx.Err() != nil && err != nil:
		return ctx.Err()
	case err != nil:
		return errors.New("it ended at once")
	}
	if err := json.Unmarshal(line, &msg); err != nil {
		return err
	}
	if msg.Error != nil {
		return msg.Error
	}
	return nil
}

// tell ends a start: err says how it went.
func tell(w *os.File, err error) {
	var msg ready
	if err != nil {
		msg.Error = control.ErrorOf(err)
	}
	if b, err := json.Marshal(msg); err == nil {
		w.Write(append(b, '\n'))
	}
	w.Close()
}

// inherited is a descriptor that the process was started with. Where it was not, the number may belong to the Go runtime, and
// is not touched.
func inherited(fd int, name string, kinds ...uint32) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || !slices.Contains(kinds, st.Mode&unix.S_IFMT) {
		return nil, fmt.Errorf("descriptor %d is no %s: agents are started by 'hawser attach'", fd, name)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name), nil
}

// Monitor is the first process of an agent. It returns when the worker has ended for good, or after ctx.
func (d *Driver) Monitor(ctx context.Context, id string, log *slog.Logger) error {
	w, err := inherited(readyFD, "pipe", unix.S_IFIFO, unix.S_IFCHR)
	if err != nil {
		return err
	}
	folder := d.folder(id)
	l, err := control.Listen(ControlSocket(folder))
	if err != nil {
		tell(w, err)
		return err
	}
	defer l.Close()
	socket, err := l.File()
	if err != nil {
		tell(w, err)
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		tell(w, err)
		return err
	}
	out := w
	err = agent.Supervise(ctx, log, func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = append(append([]string{}, d.Command...), "--state-dir", d.Store.Dir(), "--id", id, "--worker")
		cmd.Dir = "/"
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.ExtraFiles = []*os.File{out, socket}
		return cmd
	}, func(err error) {
		if err != nil {
			tell(w, err)
		}
		w.Close() // the worker has it now
		out = null
	})
	if err == nil {
		// While the socket is there nobody takes the folder for free. Closing it removes it.
		os.Remove(LogFile(folder))
		l.Close()
		os.Remove(folder)
	}
	return err
}

// Work is the second process of an agent: it holds the volumes, at first those that the worker before it held.
func (d *Driver) Work(ctx context.Context, id string, log *slog.Logger) (err error) {
	w, err := inherited(readyFD, "pipe", unix.S_IFIFO, unix.S_IFCHR)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tell(w, err)
		}
	}()
	monitor := os.Getppid()
	f, err := inherited(socketFD, "socket", unix.S_IFSOCK)
	if err != nil {
		return err
	}
	fl, err := net.FileListener(f)
	f.Close()
	if err != nil {
		return err
	}
	l, ok := fl.(*net.UnixListener)
	if !ok {
		return fmt.Errorf("descriptor %d is no unix socket", socketFD)
	}
	a := agent.New(agent.Config{Opener: &Initiator{Log: log}, PeerOf: PeerOf, Logger: log})
	records, err := d.Store.List()
	if err != nil {
		log.Warn("a record is left out", "err", err)
	}
	var mine []*attach.Record
	for _, r := range records {
		if r.Agent == id && r.Driver == d.Name() && r.State == attach.StateAttached {
			mine = append(mine, r)
		}
	}
	a.Restore(mine, func(name string) string { return agent.SocketPath(d.Store.Dir(), name) })

	s := control.NewServer(service, log)
	Register(s, a, func() attach.Agent {
		who := attach.Agent{PID: os.Getpid(), Supervisor: "none"}
		if os.Getppid() == monitor {
			who.Supervisor, who.MonitorPID = "monitor", monitor
		}
		return who
	})
	gone, unwatch, err := watchGone(ControlSocket(d.folder(id)))
	if err != nil {
		return err
	}
	defer unwatch()
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	served := make(chan error, 1)
	go func() { served <- s.Serve(serving, l) }()
	tell(w, nil)
	log.Info("agent serves", "id", id, "restored", len(mine))

	select {
	case <-a.Ended():
	case <-gone:
		log.Warn("the control socket was removed, nobody can ask for anything any more: waiting for clients to leave")
		select {
		case <-a.Unused():
		case <-ctx.Done():
		}
		a.Shutdown(context.WithoutCancel(ctx))
	case <-ctx.Done():
		log.Info("told to end")
		a.Shutdown(context.WithoutCancel(ctx))
	case err = <-served:
		a.Shutdown(context.WithoutCancel(ctx))
		return err
	}
	stop()
	return <-served
}
