package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is in the tree is what the commands of today make.
func TestFresh(t *testing.T) {
	top, made := filepath.Join("..", "..", ".."), files()
	const remedy = "run 'go run ./cmd/internal/gen'"
	for name, want := range made {
		have, err := os.ReadFile(filepath.Join(top, name))
		if err != nil {
			t.Errorf("%v: %s", err, remedy)
		} else if d := cmp.Diff(string(want), string(have)); d != "" {
			t.Errorf("%s is stale: %s\n%s", name, remedy, d)
		}
	}
	for _, folder := range folders {
		entries, err := os.ReadDir(filepath.Join(top, folder))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if _, ok := made[folder+"/"+e.Name()]; !ok {
				t.Errorf("%s/%s is not made any more: %s", folder, e.Name(), remedy)
			}
		}
	}
}

// Generating twice makes the same, and what is no longer made goes away.
func TestGenerate(t *testing.T) {
	top := t.TempDir()
	stale := filepath.Join(top, "docs", "man", "hawser-gone.1")
	if err := os.MkdirAll(filepath.Dir(stale), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stale, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := generate(top); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); err == nil {
		t.Error("a page that is no longer made is still there")
	}
	if d := cmp.Diff(files(), files()); d != "" {
		t.Error(d)
	}
}
