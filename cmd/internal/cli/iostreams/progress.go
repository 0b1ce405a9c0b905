package iostreams

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Delay is how long work takes before a Progress shows itself.
const Delay = time.Second

// A Progress tells a person at a terminal what the command is doing: one line on Err, redrawn in place, from
// Delay on. When Err is no terminal it does and prints nothing. The zero pointer is a Progress that stays silent.
type Progress struct {
	mu    sync.Mutex
	w     io.Writer
	width int
	label string
	start time.Time
	shown bool
	done  bool
	timer *time.Timer
}

// StartProgress begins a Progress; the caller ends it by Done.
func (s *Streams) StartProgress(label string) *Progress {
	if !s.errTTY {
		return nil
	}
	p := &Progress{w: s.Err, width: s.width(), label: label, start: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(Delay, p.tick)
	return p
}

// Set changes what the line says.
func (p *Progress) Set(format string, args ...any) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.label = fmt.Sprintf(format, args...)
	if p.shown && !p.done {
		p.draw()
	}
}

// Println writes a line that stays (a path that came up), above the line that is redrawn. It too is held to Delay:
// work that ends sooner says nothing.
func (p *Progress) Println(format string, args ...any) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done || !p.shown {
		return
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s\n", fmt.Sprintf(format, args...))
	p.draw()
}

// Bar draws how much of a whole is done, for work that has an end.
func (p *Progress) Bar(label string, done, whole int64) {
	if p == nil || whole <= 0 {
		return
	}
	const cells = 24
	full := int(cells * min(max(done, 0), whole) / whole)
	p.Set("%s [%s%s] %d%%", label, strings.Repeat("#", full), strings.Repeat("-", cells-full), 100*min(done, whole)/whole)
}

// Done takes the line away. It may be called more than once.
func (p *Progress) Done() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return
	}
	p.done = true
	p.timer.Stop()
	if p.shown {
		io.WriteString(p.w, "\r\x1b[K")
	}
}

func (p *Progress) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return
	}
	p.shown = true
	p.draw()
	p.timer.Reset(Delay)
}

func (p *Progress) draw() {
	line := fmt.Sprintf("%s (%d s)", p.label, int(time.Since(p.start).Seconds()))
	if r := []rune(line); len(r) >= p.width && p.width > 1 {
		line = string(r[:p.width-1])
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", line)
}
