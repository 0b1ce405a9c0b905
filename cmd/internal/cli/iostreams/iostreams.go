// Package iostreams is what a command may touch of the process around it: its three streams, what they are
// connected to, and the environment.
package iostreams

import (
	"bytes"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Streams are the standard streams of a process. Data goes to Out, everything for people's eyes only to Err.
type Streams struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer

	// LookupEnv reads the environment, as os.LookupEnv does.
	LookupEnv func(key string) (string, bool)

	outTTY, errTTY bool
	color          ColorMode
}

// System returns the streams of this process.
func System() Streams {
	return Streams{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		LookupEnv: os.LookupEnv,
		outTTY:    isTerminal(os.Stdout),
		errTTY:    isTerminal(os.Stderr),
	}
}

// Test returns streams of memory, which are no terminals and have the environment given, and the buffers behind Out and Err.
func Test(env map[string]string) (s Streams, out, errOut *bytes.Buffer) {
	out, errOut = new(bytes.Buffer), new(bytes.Buffer)
	return Streams{
		In: strings.NewReader(""), Out: out, Err: errOut,
		LookupEnv: func(key string) (string, bool) { v, ok := env[key]; return v, ok },
	}, out, errOut
}

// SetTerminal says that the streams are terminals, for tests.
func (s *Streams) SetTerminal(out, err bool) { s.outTTY, s.errTTY = out, err }

// Env returns the value of an environment variable, empty if it is not set.
func (s *Streams) Env(key string) string {
	if s.LookupEnv == nil {
		return ""
	}
	v, _ := s.LookupEnv(key)
	return v
}

// ErrIsTerminal says whether a person is looking at Err.
func (s *Streams) ErrIsTerminal() bool { return s.errTTY }

// ColorMode is the value of --color.
type ColorMode string

const (
	ColorAuto   ColorMode = "auto" // on a terminal, unless NO_COLOR is set or TERM is dumb
	ColorAlways ColorMode = "always"
	ColorNever  ColorMode = "never"
)

// SetColor sets the mode; the empty mode is ColorAuto.
func (s *Streams) SetColor(mode ColorMode) { s.color = mode }

// ColorOut and ColorErr say whether to colour what goes to the stream.
func (s *Streams) ColorOut() bool { return s.colored(s.outTTY) }
func (s *Streams) ColorErr() bool { return s.colored(s.errTTY) }

func (s *Streams) colored(tty bool) bool {
	switch s.color {
	case ColorAlways:
		return true
	case ColorNever:
		return false
	}
	return tty && s.Env("NO_COLOR") == "" && s.Env("TERM") != "dumb"
}

// width returns the columns of the terminal behind Err, 80 where it does not say.
func (s *Streams) width() int {
	if f, ok := s.Err.(*os.File); ok {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col > 0 {
			return int(ws.Col)
		}
	}
	return 80
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
