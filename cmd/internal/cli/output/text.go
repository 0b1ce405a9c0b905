package output

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/fatih/color"
	"github.com/olekukonko/tablewriter"
	"github.com/olekukonko/tablewriter/renderer"
	"github.com/olekukonko/tablewriter/tw"
)

// A Palette colours words for one stream. The zero Palette leaves them as they are.
type Palette struct{ good, warn, bad, bold, faint *color.Color }

// NewPalette returns a Palette that colours, or one that does not. The library's own idea of a terminal, which
// is taken from stdout for all streams, plays no part.
func NewPalette(on bool) Palette {
	if !on {
		return Palette{}
	}
	make := func(a color.Attribute) *color.Color {
		c := color.New(a)
		c.EnableColor()
		return c
	}
	return Palette{make(color.FgGreen), make(color.FgYellow), make(color.FgRed), make(color.Bold), make(color.Faint)}
}

func (p Palette) Good(s string) string  { return paint(p.good, s) }
func (p Palette) Warn(s string) string  { return paint(p.warn, s) }
func (p Palette) Bad(s string) string   { return paint(p.bad, s) }
func (p Palette) Bold(s string) string  { return paint(p.bold, s) }
func (p Palette) Faint(s string) string { return paint(p.faint, s) }

func paint(c *color.Color, s string) string {
	if c == nil || s == "" {
		return s
	}
	return c.Sprint(s)
}

// Text collects what people see of a View.
type Text struct {
	Palette
	b *bytes.Buffer
}

// Printf adds text as it is.
func (t *Text) Printf(format string, args ...any) { fmt.Fprintf(t.b, format, args...) }

// Table adds a table: left-aligned columns two spaces apart, no lines. Cells may be coloured; what else is not printable is
// shown as an escape, since cells hold names that targets chose.
func (t *Text) Table(header []string, rows [][]string) error {
	var b bytes.Buffer
	pad := tw.Padding{Right: "  ", Overwrite: true}
	cell := tw.CellConfig{
		Alignment:  tw.CellAlignment{Global: tw.AlignLeft},
		Formatting: tw.CellFormatting{AutoFormat: tw.Off, AutoWrap: tw.WrapNone},
		Padding:    tw.CellPadding{Global: pad},
	}
	table := tablewriter.NewTable(&b,
		tablewriter.WithRenderer(renderer.NewBlueprint(tw.Rendition{
			Borders:  tw.BorderNone,
			Settings: tw.Settings{Separators: tw.SeparatorsNone, Lines: tw.LinesNone},
		})),
		tablewriter.WithConfig(tablewriter.Config{Header: cell, Row: cell}),
		tablewriter.WithTrimSpace(tw.Off),
	)
	bold := make([]string, len(header))
	for i, h := range header {
		bold[i] = t.Bold(h)
	}
	table.Header(bold)
	for _, row := range rows {
		clean := make([]string, len(row))
		for i, c := range row {
			clean[i] = t.Safe(c)
		}
		if err := table.Append(clean); err != nil {
			return err
		}
	}
	if err := table.Render(); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		line = strings.TrimRight(line, " \n")
		// tablewriter ends padded cells that are coloured by a reset of its own.
		for strings.HasSuffix(line, " \x1b[0m") {
			line = strings.TrimRight(strings.TrimSuffix(line, "\x1b[0m"), " ")
		}
		t.b.WriteString(line + "\n")
	}
	return nil
}

// Fields adds "name: value" lines with the values in one column.
func (t *Text) Fields(pairs ...[2]string) {
	width := 0
	for _, p := range pairs {
		width = max(width, len(p[0]))
	}
	for _, p := range pairs {
		t.Printf("%s%s %s\n", t.Bold(p[0]+":"), strings.Repeat(" ", width-len(p[0])), t.Safe(p[1]))
	}
}

// Safe escapes what cannot be printed, except the sequences that the Palette put there.
func (p Palette) Safe(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) < 0 {
		return s
	}
	var b strings.Builder
	for s != "" {
		n := 0
		if p.good != nil {
			n = colorSequence(s)
		}
		if n == 0 {
			var r rune
			if r, n = utf8.DecodeRuneInString(s); !unicode.IsPrint(r) || r == utf8.RuneError {
				q := strconv.Quote(s[:n])
				b.WriteString(q[1 : len(q)-1])
				s = s[n:]
				continue
			}
		}
		b.WriteString(s[:n])
		s = s[n:]
	}
	return b.String()
}

// colorSequence returns the length of the SGR sequence that s begins with, or 0.
func colorSequence(s string) int {
	if !strings.HasPrefix(s, "\x1b[") {
		return 0
	}
	for i := 2; i < len(s) && i < 16; i++ {
		switch c := s[i]; {
		case c == 'm':
			return i + 1
		case c != ';' && (c < '0' || c > '9'):
			return 0
		}
	}
	return 0
}
