//go:build linux

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

const (
	rootRelease   = "trixie"
	oldRelease    = "bookworm"
	defaultMirror = "http://deb.debian.org/debian"
	keyring       = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

// apt is a private apt: its own sources, lists and cache. The machine's settings for fetching (a proxy, say) still
// apply; the machine's package state is neither read nor written.
type apt struct {
	dir    string
	mirror string
}

func newApt(ctx context.Context, dir string) (*apt, error) {
	a := &apt{dir: dir, mirror: machineMirror(ctx)}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	var sources strings.Builder
	for _, release := range []string{oldRelease, rootRelease} {
		fmt.Fprintln(&sources, a.source(release))
	}
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(sources.String()), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "status"), nil, 0o644); err != nil {
		return nil, err
	}
	if _, err := a.run(ctx, dir, "apt-get", "update", "-q"); err != nil {
		return nil, err
	}
	return a, nil
}

// source is the one-line source of a Debian release.
func (a *apt) source(release string) string {
	return fmt.Sprintf("deb [arch=amd64 signed-by=%s] %s %s main", keyring, a.mirror, release)
}

// machineMirror is where this machine fetches Debian itself from, or Debian's own address.
func machineMirror(ctx context.Context) string {
	out, err := output(ctx, "", "apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages")
	if err != nil {
		return defaultMirror
	}
	for line := range strings.Lines(out) {
		uri, label, _ := strings.Cut(strings.TrimSpace(line), " ")
		if label == "Debian" && strings.HasPrefix(uri, "http") {
			return strings.TrimSuffix(uri, "/")
		}
	}
	return defaultMirror
}

func (a *apt) run(ctx context.Context, dir, tool string, args ...string) (string, error) {
	return output(ctx, dir, tool, append([]string{
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(a.dir, "sources.list"),
		"-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::State::lists=" + filepath.Join(a.dir, "lists"),
		"-o", "Dir::State::status=" + filepath.Join(a.dir, "status"),
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"-o", "Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled=false",
		"-o", "APT::Sandbox::User=",
	}, args...)...)
}

var imageDepends = regexp.MustCompile(`(?m)^Depends: (linux-image-([0-9]+\.[0-9]+)\.[^ ,]*-amd64)`)

// kernelPackage names the newest linux-image of a series such as "6.12".
func (a *apt) kernelPackage(ctx context.Context, series string) (string, error) {
	out, err := a.run(ctx, "", "apt-cache", "show", "linux-image-amd64")
	if err != nil {
		return "", err
	}
	for _, m := range imageDepends.FindAllStringSubmatch(out, -1) {
		if m[2] == series {
			return m[1], nil
		}
	}
	return "", fmt.Errorf("no linux-image %s at %s", series, a.mirror)
}

// output runs a command and returns its standard output; an error holds the last of its standard error.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("%s is not installed: ./test/run installs what the VM tests need", name)
		}
		return "", fmt.Errorf("%s: %w: %s", name, err, tail(stderr.String(), 6))
	}
	return stdout.String(), nil
}

// tail is the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
