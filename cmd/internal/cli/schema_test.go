package cli

import (
	"encoding"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hawser.dev/hawser/cmd/internal/cli/demo"
	"hawser.dev/hawser/cmd/internal/cli/discover"
	"hawser.dev/hawser/cmd/internal/cli/host"
	"hawser.dev/hawser/cmd/internal/cli/list"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/cmd/internal/cli/probe"
	"hawser.dev/hawser/cmd/internal/cli/show"
	"hawser.dev/hawser/cmd/internal/cli/target"
	"hawser.dev/hawser/cmd/internal/cli/version"
	"hawser.dev/hawser/cmd/internal/cli/volume"
)

var update = flag.Bool("update", false, "write what documents look like now")

const schemaFile = "testdata/schema.txt"

// The fields of every document are a promise: within a schema version none is lost, renamed or changes its type. Run with -update
// after adding one.
func TestSchema(t *testing.T) {
	var lines []string
	for name, doc := range map[string]output.Document{
		"error":          output.ErrorDocument{},
		"version":        version.Info{},
		"demo":           demo.Shown{},
		"discover":       discover.Discovered{},
		"probe":          probe.Probed{},
		"host show":      host.Shown{},
		"host create":    host.Created{},
		"host check":     host.Checked{},
		"target serve":   target.Served{},
		"target list":    target.Listed{},
		"attach, detach": volume.Result{},
		"list":           list.Document{},
		"show":           show.Document{},
		"list (line)":    volume.Line{},
	} {
		fields(&lines, name+":", reflect.TypeOf(doc))
	}
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"
	if *update {
		if err := os.WriteFile(schemaFile, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("documents changed:\n%s", d)
	}
}

// fields adds a line "PATH TYPE" for each field that encoding/json writes.
func fields(lines *[]string, path string, typ reflect.Type) {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	marshaler, text := reflect.TypeFor[json.Marshaler](), reflect.TypeFor[encoding.TextMarshaler]()
	switch {
	case typ == reflect.TypeFor[output.Version]():
		*lines = append(*lines, path+" 1")
	case typ.Implements(marshaler), typ.Implements(text):
		*lines = append(*lines, path+" text")
	case typ.Kind() == reflect.Slice:
		fields(lines, path+"[]", typ.Elem())
	case typ.Kind() == reflect.Struct:
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case !f.IsExported() && !f.Anonymous, name == "-":
				continue
			case name == "" && f.Anonymous:
				fields(lines, path, f.Type)
				continue
			case name == "":
				name = f.Name
			}
			if options != "" {
				name += "?"
			}
			path := path + " ." + name
			if strings.TrimLeft(f.Type.String(), "[]*") == "attach.Volume" {
				*lines = append(*lines, path+" as in list")
				continue
			}
			fields(lines, path, f.Type)
		}
	default:
		*lines = append(*lines, path+" "+typ.Kind().String())
	}
}
