// Package boundaries holds the test of who may import whom.
package boundaries

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "hawser.dev/hawser"

type pkg struct {
	ImportPath, Name, Dir      string
	GoFiles, CgoFiles, Imports []string
}

// list runs go list with arguments at the top of the module.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Name,Dir,GoFiles,CgoFiles,Imports"}, args...)...)
	cmd.Dir = filepath.Join("..", "..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// within says whether path is one of the trees, or in one. "x/." stands for x without what is below it.
func within(path string, trees []string) bool {
	return slices.ContainsFunc(trees, func(tree string) bool {
		if exact, ok := strings.CutSuffix(tree, "/."); ok {
			return path == exact
		}
		return path == tree || strings.HasPrefix(path, tree+"/")
	})
}

type room struct {
	tree string
	may  []string
}

// rooms says for each tree, the most specific one first, which other trees of the module it may import.
var rooms = []room{
	{"nvme/nvmetest", []string{"nvme"}},
	{"nvme/wire", []string{"nvme/."}},
	{"nvme/tcp", []string{"nvme/.", "nvme/wire"}},
	{"nvme/host", []string{"nvme/.", "nvme/wire", "nvme/tcp", "multipath/."}},
	{"nvme", nil},
	{"multipath", nil},
	{"target-lite/backend", nil},
	{"target-lite", []string{"nvme/.", "nvme/wire", "nvme/tcp", "target-lite/backend"}},
	{"attach/frontend", []string{"attach/frontend"}},
	{"attach/hostid", []string{"nvme/."}},
	{"attach", []string{"nvme/.", "multipath", "resize", "attach"}},
	{"cmd", []string{"cmd", "nvme", "attach", "multipath", "iscsi", "resize", "target-lite"}},
	{"iscsi", []string{"iscsi", "multipath/."}},
	{"resize", []string{"attach", "nvme/.", "multipath"}},
	{"test", []string{"test", "nvme", "attach", "target-lite", "multipath", "iscsi", "resize"}},
}

// owners says which trees alone may import a package from elsewhere, in code that is no test.
var owners = map[string][]string{
	"github.com/spf13/cobra":             {"cmd"},
	"github.com/spf13/pflag":             {"cmd"},
	"github.com/olekukonko/tablewriter":  {"cmd/internal/cli/output"},
	"github.com/fatih/color":             {"cmd/internal/cli/output"},
	"github.com/google/go-cmp":           nil,
	"github.com/rogpeppe/go-internal":    nil,
	"testing":                            {"nvme/nvmetest", "attach/frontend/frontendtest", "target-lite/backend/backendtest", "test"},
	"log/.":                              nil, // log/slog, injected
	"hawser.dev/hawser/nvme/nvmetest":    {"nvme/nvmetest"},
	"hawser.dev/hawser/cmd/internal/gen": nil,
}

// without says what a tree must do without: these do no I/O.
var without = map[string][]string{
	"nvme/.":      {"os", "syscall", "golang.org/x/sys"},
	"nvme/wire":   {"net", "os", "syscall", "golang.org/x/sys"},
	"multipath/.": {"net", "os", "syscall", "golang.org/x/sys"},
}

func TestImports(t *testing.T) {
	for _, p := range list(t, "./...") {
		path := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		i := slices.IndexFunc(rooms, func(r room) bool { return within(path, []string{r.tree}) })
		if i < 0 {
			t.Errorf("%s is in no room", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			inner, ours := strings.CutPrefix(imp, module+"/")
			if ours && inner != path && !within(inner, rooms[i].may) {
				t.Errorf("%s imports %s: %s may import %q", path, inner, rooms[i].tree, rooms[i].may)
			}
			for owned, by := range owners {
				if within(imp, []string{owned}) && !within(path, by) {
					t.Errorf("%s imports %s, which only %q may", path, imp, by)
				}
			}
			for tree, none := range without {
				if within(path, []string{tree}) && within(imp, none) {
					t.Errorf("%s imports %s", path, imp)
				}
			}
		}
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo", path)
		}
		if p.Name == "util" || p.Name == "utils" || p.Name == "common" {
			t.Errorf("%s: package %s says nothing", path, p.Name)
		}
		noInit(t, p)
	}
}

// noInit refuses init functions: a package does nothing before it is called.
func noInit(t *testing.T, p pkg) {
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s/%s has an init function", p.ImportPath, name)
			}
		}
	}
}

// The program that is shipped holds nothing that only tests and generators need.
func TestShipped(t *testing.T) {
	for _, p := range list(t, "-deps", "./cmd/hawser") {
		for _, none := range []string{"testing", "github.com/spf13/cobra/doc", "github.com/google/go-cmp", "github.com/rogpeppe/go-internal", "net/http"} {
			if within(p.ImportPath, []string{none}) {
				t.Errorf("cmd/hawser depends on %s", p.ImportPath)
			}
		}
	}
}
