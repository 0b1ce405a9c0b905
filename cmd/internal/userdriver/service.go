package userdriver

import (
	"context"
	"errors"
	"net"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/attach/agent"
	"hawser.dev/hawser/cmd/internal/control"
)

// service is what an agent calls itself on its control socket.
const service = "agent"

// Methods of an agent and what they carry.
const (
	methodAttach = "attach"
	methodDetach = "detach"
	methodStatus = "status"
)

type attachParams struct {
	Record attach.Record `json:"record"`
	Socket string        `json:"socket"`
}

type detachParams struct {
	Name    string               `json:"name"`
	Options attach.DetachOptions `json:"options"`
}

type statusParams struct {
	Name string `json:"name"`
}

// reply answers every method.
type reply struct {
	Absent bool                `json:"absent,omitempty"` // the agent does not hold the volume
	Ending bool                `json:"ending,omitempty"` // the agent holds nothing (more) and ends
	Status attach.Status       `json:"status,omitzero"`
	Detach attach.DetachResult `json:"detach,omitzero"`
}

// Register makes a answer on s. about describes the process.
func Register(s *control.Server, a *agent.Agent, about func() attach.Agent) {
	control.Handle(s, methodAttach, func(ctx context.Context, p attachParams) (reply, error) {
		st, err := a.Attach(ctx, &p.Record, p.Socket)
		if errors.Is(err, agent.ErrEnding) {
			return reply{Ending: true}, nil
		}
		return described(st, about), err
	})
	control.Handle(s, methodDetach, func(ctx context.Context, p detachParams) (reply, error) {
		res, err := a.Detach(ctx, p.Name, p.Options)
		r := reply{Detach: res}
		if errors.Is(err, attach.ErrNotAttached) {
			r.Absent, err = true, nil
		}
		select {
		case <-a.Ended():
			r.Ending = true
		default:
		}
		return r, err
	})
	control.Handle(s, methodStatus, func(_ context.Context, p statusParams) (reply, error) {
		st, err := a.Status(p.Name)
		if errors.Is(err, attach.ErrNotAttached) {
			return reply{Absent: true}, nil
		}
		return described(st, about), err
	})
}

func described(st attach.Status, about func() attach.Agent) reply {
	who := about()
	st.Agent = &who
	return reply{Status: st}
}

// PeerOf is agent.Config.PeerOf by the control socket's means.
func PeerOf(c *net.UnixConn) (attach.Client, error) {
	p, err := control.PeerOf(c)
	return attach.Client{PID: p.PID, UID: p.UID}, err
}
