// Command gen writes what is made from the tree of commands, the completion scripts and the man pages:
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

// generate writes the files below top, and removes those that are no longer made.
func generate(top string) error {
	for folder, files := range files() {
		dir := filepath.Join(top, folder)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		have, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range have {
			if _, ok := files[e.Name()]; !ok {
				if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}
