// Package output prints results: a table for people, JSON, YAML or JSON lines for programs. stdout is data.
package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/goccy/go-yaml"
)

// Format is the value of --output.
type Format string

const (
	FormatTable Format = "table"
	FormatJSON  Format = "json"
	FormatYAML  Format = "yaml"
	FormatJSONL Format = "jsonl"
)

// Formats lists the formats there are.
func Formats() []Format { return []Format{FormatTable, FormatJSON, FormatYAML, FormatJSONL} }

// Machine says whether the format is for programs.
func (f Format) Machine() bool { return f != FormatTable && f != "" }

// Version is the version of every document printed: it always marshals as 1. Within a version no field is lost or renamed.
type Version struct{}

const schemaVersion = 1

func (Version) MarshalJSON() ([]byte, error) { return json.Marshal(schemaVersion) }

func (*Version) UnmarshalJSON(b []byte) error {
	var v int
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	if v != schemaVersion {
		return fmt.Errorf("schemaVersion %d is not %d", v, schemaVersion)
	}
	return nil
}

// Header is embedded as the first field of every document.
type Header struct {
	SchemaVersion Version `json:"schemaVersion"`
}

func (Header) document() {}

// A Document is a struct that embeds Header and has json tags.
type Document interface{ document() }

// A View is a result in each of its forms.
type View struct {
	Doc   Document          // for json and yaml
	Lines []Document        // for jsonl: one object a line; nil prints Doc as one line
	Text  func(*Text) error // for people
}

// A Printer prints to one stream in one format.
type Printer struct {
	w      io.Writer
	format Format
	color  bool
}

// NewPrinter returns a Printer; color concerns the format table only.
func NewPrinter(w io.Writer, format Format, color bool) *Printer {
	return &Printer{w: w, format: format, color: color}
}

// Print prints a result. It is written with one call, or not at all.
func (p *Printer) Print(v View) error {
	var b bytes.Buffer
	switch p.format {
	case FormatJSON:
		if err := encode(&b, v.Doc, "  "); err != nil {
			return err
		}
	case FormatYAML:
		var j bytes.Buffer
		if err := encode(&j, v.Doc, ""); err != nil {
			return err
		}
		y, err := yaml.JSONToYAML(j.Bytes())
		if err != nil {
			return fmt.Errorf("yaml: %w", err)
		}
		b.Write(y)
	case FormatJSONL:
		lines := v.Lines
		if lines == nil {
			lines = []Document{v.Doc}
		}
		for _, d := range lines {
			if err := encode(&b, d, ""); err != nil {
				return err
			}
		}
	default:
		t := &Text{Palette: NewPalette(p.color), b: &b}
		if err := v.Text(t); err != nil {
			return err
		}
	}
	_, err := p.w.Write(b.Bytes())
	return err
}

func encode(b *bytes.Buffer, d Document, indent string) error {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	return enc.Encode(d)
}

// ErrorDocument is what goes to stderr, as one line, where a command fails and the format is not table.
type ErrorDocument struct {
	Header
	Error ErrorBody `json:"error"`
}

// ErrorBody says what failed.
type ErrorBody struct {
	Code    int    `json:"code"` // the exit code
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// PrintError prints a failure: an object for programs (JSON, which YAML contains), "hawser: …" lines for people.
func PrintError(w io.Writer, format Format, color bool, e ErrorBody) {
	var b bytes.Buffer
	if format.Machine() {
		if encode(&b, ErrorDocument{Error: e}, "") == nil {
			w.Write(b.Bytes())
		}
		return
	}
	c := NewPalette(color)
	fmt.Fprintf(&b, "%s %s\n", c.Bad("hawser:"), Palette{}.Safe(e.Message))
	if e.Hint != "" {
		fmt.Fprintf(&b, "%s %s\n", c.Faint("hawser: hint:"), Palette{}.Safe(e.Hint))
	}
	w.Write(b.Bytes())
}
