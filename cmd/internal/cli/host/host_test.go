package host

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"hawser.dev/hawser/attach/hostid"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/iostreams"
)

const id = "0f5c9b6e-8d0b-4b57-9d5c-2a4b6d1c7e01"

// run runs 'host ARG… -o json' as root of a machine that is the folder root, and decodes what it prints.
func run(t *testing.T, root string, doc any, args ...string) error {
	t.Helper()
	streams, out, _ := iostreams.Test(nil)
	f := factory.New(streams)
	f.HostIDs = func() *hostid.Store { return &hostid.Store{Root: root, Dir: hostid.SystemDir} }
	cmd := New(f)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	f.AddGlobalFlags(cmd)
	cmd.SetArgs(append(args, "--json"))
	err := cmd.Execute()
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), doc); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
	}
	return err
}

func TestCreate(t *testing.T) {
	root := t.TempDir()
	var doc Created
	for _, step := range []struct {
		args    []string
		changed bool
		code    exit.Code
	}{
		{[]string{"create", "--check", "--hostid", id}, true, exit.OK},
		{[]string{"create", "--hostid", id}, true, exit.OK},
		{[]string{"create", "-I", id}, false, exit.OK},
		{[]string{"create"}, false, exit.OK},
		{[]string{"create", "-q", "nqn.2026-01.org.example:h"}, false, exit.InUse},
		{[]string{"create", "-q", "nqn.2026-01.org.example:h", "--force"}, true, exit.OK},
	} {
		doc = Created{}
		if err := run(t, root, &doc, step.args...); exit.CodeOf(err) != step.code || doc.Changed != step.changed {
			t.Fatalf("%q: %v, %+v", step.args, err, doc)
		}
	}
	if doc.HostNQN != "nqn.2026-01.org.example:h" || doc.HostNQNSource != "/etc/nvme/hostnqn" {
		t.Errorf("at the end: %+v", doc)
	}
	var shown Shown
	if err := run(t, root, &shown, "show"); err != nil || shown.Identity != doc.Identity {
		t.Errorf("show: %v %+v", err, shown)
	}
}

func TestCheck(t *testing.T) {
	root := t.TempDir()
	if err := run(t, root, new(Created), "create", "--hostid", id); err != nil {
		t.Fatal(err)
	}
	var doc Checked
	if err := run(t, root, &doc, "check"); err != nil || !doc.OK || len(doc.Findings) != 0 {
		t.Errorf("%v %+v", err, doc)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/nvme/hostid"), []byte("x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	doc = Checked{}
	if err := run(t, root, &doc, "check"); exit.CodeOf(err) != exit.Failed || doc.OK || len(doc.Findings) != 1 || doc.Identity != nil {
		t.Errorf("%v %+v", err, doc)
	}
}
