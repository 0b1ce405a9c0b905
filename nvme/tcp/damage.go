package tcp

import (
	"log/slog"
	"time"
)

// damage counts the commands of a queue whose data had another digest than it should, and tells of them at most once
// a second: a bad link makes many. It is the loop's own.
type damage struct {
	told  time.Time
	count int // not told yet
}

// tell logs what is due, or, at the end, all that is left.
func (d *damage) tell(log *slog.Logger, s Stream, end bool) {
	if d.count == 0 {
		return
	}
	now := time.Now()
	if !end && now.Sub(d.told) < time.Second {
		return
	}
	log.Warn("data digest mismatch: data was damaged on the way", "local", s.LocalAddr(), "remote", s.RemoteAddr(), "commands", d.count)
	d.told, d.count = now, 0
}
