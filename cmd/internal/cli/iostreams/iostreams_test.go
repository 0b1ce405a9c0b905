package iostreams

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestColor(t *testing.T) {
	for _, tc := range []struct {
		name           string
		env            map[string]string
		outTTY, errTTY bool
		mode           ColorMode
		out, err       bool
	}{
		{name: "piped"},
		{name: "stdout piped", errTTY: true, err: true},
		{name: "stderr piped", outTTY: true, out: true},
		{name: "NO_COLOR", env: map[string]string{"NO_COLOR": "1"}, outTTY: true, errTTY: true},
		{name: "NO_COLOR empty", env: map[string]string{"NO_COLOR": ""}, outTTY: true, out: true},
		{name: "dumb", env: map[string]string{"TERM": "dumb"}, outTTY: true},
		{name: "always", env: map[string]string{"NO_COLOR": "1"}, mode: ColorAlways, out: true, err: true},
		{name: "never", outTTY: true, errTTY: true, mode: ColorNever},
	} {
		s, _, _ := Test(tc.env)
		s.SetTerminal(tc.outTTY, tc.errTTY)
		s.SetColor(tc.mode)
		if s.ColorOut() != tc.out || s.ColorErr() != tc.err {
			t.Errorf("%s: stdout %v, stderr %v", tc.name, s.ColorOut(), s.ColorErr())
		}
	}
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, errOut := Test(nil)
		p := s.StartProgress("working")
		time.Sleep(3 * Delay)
		p.Set("still %d", 1)
		p.Println("line")
		p.Done()
		if errOut.Len() != 0 {
			t.Errorf("on a pipe: %q", errOut)
		}

		s.SetTerminal(false, true)
		p = s.StartProgress("short")
		p.Println("line")
		time.Sleep(Delay - 1)
		p.Done()
		if errOut.Len() != 0 {
			t.Errorf("for short work: %q", errOut)
		}

		p = s.StartProgress("long")
		time.Sleep(Delay + Delay/2)
		p.Println("path up")
		p.Bar("copied", 3, 4)
		p.Done()
		p.Done()
		time.Sleep(2 * Delay)
		want := "\r\x1b[Klong (1 s)|\r\x1b[Kpath up\n|\r\x1b[Klong (1 s)|\r\x1b[Kcopied [" + strings.Repeat("#", 18) + strings.Repeat("-", 6) + "] 75% (1 s)|\r\x1b[K"
		if got := errOut.String(); got != strings.ReplaceAll(want, "|", "") {
			t.Errorf("got %q", got)
		}
	})
}
