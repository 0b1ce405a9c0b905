// Command gen writes what is made from the tree of commands, the completion scripts, the man pages and the table of exit codes:
//
//	go run ./cmd/internal/gen
//
// It runs at the top of the source tree. Nothing of it is in the shipped binary.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := generate("."); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// generate writes the files below top, and removes those in folders of its own that are no longer made.
func generate(top string) error {
	made := files()
	for _, folder := range folders {
		dir := filepath.Join(top, folder)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		have, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range have {
			if _, ok := made[folder+"/"+e.Name()]; !ok {
				if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	for name, text := range made {
		if err := os.WriteFile(filepath.Join(top, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
