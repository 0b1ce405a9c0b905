package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is in the tree is what the commands of today make.
func TestFresh(t *testing.T) {
	for folder, want := range files() {
		dir := filepath.Join("..", "..", "..", folder)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Errorf("%v: run 'go run ./cmd/internal/gen'", err)
			continue
		}
		have := make(map[string][]byte)
		for _, e := range entries {
			if have[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
		for name := range want {
			if _, ok := have[name]; !ok {
				t.Errorf("%s/%s is missing: run 'go run ./cmd/internal/gen'", folder, name)
			}
		}
		for name, b := range have {
			if d := cmp.Diff(string(want[name]), string(b)); d != "" {
				t.Errorf("%s/%s is stale: run 'go run ./cmd/internal/gen'\n%s", folder, name, d)
			}
		}
	}
}
