// Package userdriver is the driver "user": the pure-Go initiator in a background process, reached over its control socket.
package userdriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/attach/agent"
	"hawser.dev/hawser/attach/frontend/nbd"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/control"
	"hawser.dev/hawser/nvme"
)

const (
	maxAgents    = 16 // of which each serves one target; further targets share them
	maxQueueSize = 512
	maxRestarts  = 4               // of an attach whose agent ended under it
	endTimeout   = 3 * time.Second // for an agent that holds nothing to be gone
)

// Driver is the user driver over the agents of one state folder.
type Driver struct {
	Store *attach.Store
	Log   *slog.Logger
	// Command is the program and first arguments that run an agent; to it are added --state-dir DIR --id NAME.
	Command []string
}

var _ attach.Driver = (*Driver)(nil)

func (d *Driver) Name() string { return attach.DriverUser }

// Check refuses what the user driver cannot do.
func (d *Driver) Check(spec *attach.Spec, paths []attach.PathSpec) error {
	unsupported := func(what, hint string) error {
		return &attach.Error{Cause: attach.CauseUnsupported, Err: fmt.Errorf("%s: the user driver cannot do this", what), Hint: hint}
	}
	o := &spec.Options
	switch t := spec.Target; {
	case t.Protocol != attach.NVMe:
		return unsupported("target "+t.String(), "it speaks NVMe/TCP: use an nvme:// target")
	case t.Transport != nvme.TransportTCP:
		return unsupported("--transport "+string(t.Transport), "it speaks tcp alone")
	case len(paths) > 1:
		return unsupported(fmt.Sprintf("%d paths to one volume (%v)", len(paths), paths), "give one portal and at most one --bind")
	case o.QueueSize > maxQueueSize:
		return unsupported(fmt.Sprintf("--queue-size %d", o.QueueSize), fmt.Sprintf("at most %d", maxQueueSize))
	}
	for _, c := range []struct {
		flag  string
		given bool
	}{
		{"nr-write-queues", o.NrWriteQueues != 0},
		{"nr-poll-queues", o.NrPollQueues != 0},
		{"disable-sqflow", o.DisableSQFlow},
		{"duplicate-connect", o.DuplicateConn},
		{"tls", o.TLS},
		{"dhchap-secret", o.DHCHAPSecret != attach.SecretRef{}},
		{"dhchap-ctrl-secret", o.DHCHAPCtrlSecret != attach.SecretRef{}},
	} {
		if c.given {
			return unsupported("--"+c.flag, "leave it out")
		}
	}
	return nil
}

// Prepare picks the agent: one for each target, up to a number, then the one that holds least.
func (d *Driver) Prepare(r *attach.Record, others []*attach.Record) error {
	r.Frontend = attach.FrontendSocket
	socket := agent.SocketPath(d.Store.Dir(), r.Name)
	if err := agent.CheckSocketPath(socket); err != nil {
		return err
	}
	r.Device = attach.SocketDevice(socket)
	if r.Agent == "" {
		r.Agent = pickAgent(r, others)
	}
	return agent.CheckSocketPath(d.control(r.Agent))
}

func pickAgent(r *attach.Record, others []*attach.Record) string {
	load := map[string]int{}
	for _, o := range others {
		if o.Agent == "" {
			continue
		}
		if o.Spec.Target.Name == r.Spec.Target.Name {
			return o.Agent
		}
		load[o.Agent]++
	}
	least := ""
	for i := range maxAgents {
		id := strconv.Itoa(i + 1)
		if load[id] == 0 {
			return id
		}
		if least == "" || load[id] < load[least] {
			least = id
		}
	}
	return least
}

func (d *Driver) folder(id string) string  { return filepath.Join(d.Store.Dir(), "agents", id) }
func (d *Driver) control(id string) string { return ControlSocket(d.folder(id)) }

// ControlSocket is the control socket of the agent that lives in folder, LogFile its log.
func ControlSocket(folder string) string { return filepath.Join(folder, "control") }
func LogFile(folder string) string       { return filepath.Join(folder, "log") }

// Attach has the agent hold the volume, starting it where it does not run, and proves the socket by a read.
func (d *Driver) Attach(ctx context.Context, r *attach.Record) (attach.Status, error) {
	socket := agent.SocketPath(d.Store.Dir(), r.Name)
	_, err := d.Status(ctx, r)
	held := err == nil // by an attach before this one: not ours to take down
	var st attach.Status
	for restarts := 0; ; restarts++ {
		rep, err := d.call(ctx, r.Agent, methodAttach, attachParams{*r, socket})
		switch {
		case err == nil && !rep.Ending:
			st = rep.Status
			if err := prove(ctx, socket, st.Identity.Size); err != nil {
				if !held {
					d.Detach(context.WithoutCancel(ctx), r, attach.DetachOptions{Force: true})
				}
				return attach.Status{}, err
			}
			return d.located(st, r), nil
		case err != nil && !control.IsDown(err):
			return attach.Status{}, err
		case restarts == maxRestarts:
			return attach.Status{}, &attach.Error{Cause: attach.CauseFailed, Err: fmt.Errorf("agent %s ended %d times under the attach: %w", r.Agent, restarts, err),
				Hint: "its log says why: " + LogFile(d.folder(r.Agent))}
		}
		if err := d.start(ctx, r.Agent); err != nil {
			return attach.Status{}, err
		}
	}
}

// prove reads the first block through the socket, as any client would.
func prove(ctx context.Context, socket string, size int64) error {
	fail := func(err error) error {
		return &attach.Error{Cause: attach.Cause(exit.CodeOf(err)), Err: fmt.Errorf("the device does not work: %w", err)}
	}
	c, err := nbd.Dial(ctx, socket, "")
	if err != nil {
		return fail(err)
	}
	defer c.Close()
	if c.Size() != size {
		return fail(fmt.Errorf("it shows %d bytes, the volume has %d", c.Size(), size))
	}
	if n := c.BlockSize(); size >= int64(n) {
		if err := c.ReadAt(ctx, make([]byte, n), 0); err != nil {
			return fail(err)
		}
	}
	return nil
}

func (d *Driver) located(st attach.Status, r *attach.Record) attach.Status {
	if st.Agent != nil {
		st.Agent.Name, st.Agent.Log = r.Agent, LogFile(d.folder(r.Agent))
	}
	return st
}

func (d *Driver) call(ctx context.Context, id, method string, params any) (reply, error) {
	var rep reply
	err := control.Call(ctx, d.control(id), service, method, params, &rep)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		err = &attach.Error{Cause: attach.CauseUnreachable, Err: fmt.Errorf("agent %s does not answer: %w", id, err),
			Hint: "its log may say why: " + LogFile(d.folder(id)) + "; killing it lets go of all it holds, and the next attach or detach tidies up"}
	}
	return rep, err
}

// Detach has the agent let the volume go, and removes what an agent that died left behind.
func (d *Driver) Detach(ctx context.Context, r *attach.Record, opts attach.DetachOptions) (attach.DetachResult, error) {
	rep, err := d.call(ctx, r.Agent, methodDetach, detachParams{r.Name, opts})
	down := control.IsDown(err)
	if err != nil && !down {
		return attach.DetachResult{}, err
	}
	if rep.Ending || down {
		d.sweep(ctx, r.Agent)
	}
	// Gone already, unless the process that made it died.
	if err := agent.RemoveSocket(agent.SocketPath(d.Store.Dir(), r.Name)); err != nil {
		return attach.DetachResult{}, err
	}
	if down || rep.Absent {
		return attach.DetachResult{}, attach.ErrNotAttached
	}
	return rep.Detach, nil
}

// Status asks the agent.
func (d *Driver) Status(ctx context.Context, r *attach.Record) (attach.Status, error) {
	rep, err := d.call(ctx, r.Agent, methodStatus, statusParams{r.Name})
	switch {
	case control.IsDown(err), err == nil && rep.Absent:
		return attach.Status{}, attach.ErrNotAttached
	case err != nil:
		return attach.Status{}, err
	}
	return d.located(rep.Status, r), nil
}

// sweep waits until an agent that ends is gone, and removes the folder of one that died. Nobody starts it meanwhile.
func (d *Driver) sweep(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	lock, err := d.Store.LockAgent(ctx, id)
	if err != nil {
		return
	}
	defer lock.Unlock()
	d.clear(ctx, id)
}

// clear waits until no process of an agent is alive and removes its folder. The agent's lock is held.
func (d *Driver) clear(ctx context.Context, id string) {
	log, err := lockLog(ctx, d.folder(id), false)
	if err != nil {
		return // gone, or alive again
	}
	defer log.Close()
	if err := removeFolder(d.folder(id)); err != nil && d.Log != nil {
		d.Log.Warn("cannot remove what an agent left behind", "err", err)
	}
}

// Sweep removes the folders of agents that are dead and hold nothing on record: such as were started by a call that died.
func (d *Driver) Sweep(records []*attach.Record) {
	entries, err := os.ReadDir(filepath.Join(d.Store.Dir(), "agents"))
	if err != nil {
		return
	}
	for _, e := range entries {
		id := e.Name()
		if slices.ContainsFunc(records, func(r *attach.Record) bool { return r.Agent == id }) {
			continue
		}
		lock, err := d.Store.TryLockAgent(id)
		if err != nil {
			continue
		}
		log, err := os.OpenFile(LogFile(d.folder(id)), os.O_RDWR, 0)
		if err == nil {
			err = attach.LockFile(context.Background(), log, true)
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			removeFolder(d.folder(id)) // what does not go stays for the next sweep
		}
		log.Close()
		lock.Unlock()
	}
}

// removeFolder removes an agent's folder and what an agent puts there, nothing else.
func removeFolder(folder string) error {
	err := agent.RemoveSocket(ControlSocket(folder))
	for _, path := range slices.Backward([]string{folder, LogFile(folder)}) {
		if rerr := os.Remove(path); rerr != nil && !os.IsNotExist(rerr) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}
