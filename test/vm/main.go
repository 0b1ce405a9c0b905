//go:build linux

package vm

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"hawser.dev/hawser/test/vm/guest"
)

// bootAttempts bounds how often a boot that the emulator itself broke is tried.
const bootAttempts = 4

// Main is the whole of a case package's TestMain; it returns the exit status. It takes these flags beside go test's:
//
//	-kernel LIST   which kernels to boot, separated by commas; all of them when empty
//	-out DIR       keep what cases left in guest.Out, in a folder for each kernel
func Main(m *testing.M, opts ...Options) int {
	kernels := flag.String("kernel", strings.Join(Kernels(), ","), "kernels to boot, separated by commas")
	out := flag.String("out", "", "keep the files that cases leave in this folder, one below it for each kernel")
	flag.Parse()
	if guest.Inside() {
		return m.Run()
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if timeout := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration); timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout-timeout/50, fmt.Errorf("-timeout %v is over", timeout))
		defer cancel()
	}
	var o Options
	if len(opts) > 0 {
		o = opts[0]
	}
	code, err := runOutside(ctx, log, strings.Split(*kernels, ","), *out, o)
	if err != nil {
		log.Error(err.Error())
		return 1
	}
	return code
}

func runOutside(ctx context.Context, log *slog.Logger, kernels []string, out string, opts Options) (int, error) {
	for _, series := range kernels {
		if !slices.Contains(Kernels(), series) {
			return 0, fmt.Errorf("-kernel %s: no such kernel, there are %s", series, strings.Join(Kernels(), " and "))
		}
	}
	img, err := openImage(ctx, log)
	if err != nil {
		return 0, err
	}
	work, err := os.MkdirTemp("", "hawser-vm")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	share := filepath.Join(work, "share")
	if err := os.MkdirAll(filepath.Join(share, "bin"), 0o755); err != nil {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	if err := copyFile(filepath.Join(share, "bin", "cases"), self); err != nil {
		return 0, err
	}
	for _, path := range opts.Files {
		data, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		if err := os.WriteFile(filepath.Join(share, filepath.Base(path)), data, 0o644); err != nil {
			return 0, err
		}
	}
	initBinary := filepath.Join(work, "init")
	for pkg, binary := range map[string]string{
		"hawser.dev/hawser/test/vm/init": initBinary,
		"hawser.dev/hawser/cmd/hawser":   filepath.Join(share, "bin", "hawser"),
	} {
		if err := build(ctx, pkg, binary); err != nil {
			return 0, err
		}
	}

	// Two cores carry one guest: another run on this machine waits.
	cache, err := CacheDir()
	if err != nil {
		return 0, err
	}
	unlock, err := lock(filepath.Join(cache, "run.lock"))
	if err != nil {
		return 0, err
	}
	defer unlock()

	worst := 0
	for _, series := range kernels {
		files := filepath.Join(share, "out")
		if err := os.MkdirAll(files, 0o755); err != nil {
			return 0, err
		}
		job := guest.Job{Args: append([]string{guest.Bin + "/cases"}, guestArgs(os.Args[1:])...)}
		start := time.Now()
		code := 0
		for attempt := 1; ; attempt++ {
			job.Now = time.Now()
			w := &relabel{w: os.Stdout, prefix: "linux-" + series + "/"}
			code, err = img.boot(ctx, log, img.Kernels[series], job, share, initBinary, opts, w)
			w.flush()
			if !errors.Is(err, errBootFlake) || attempt == bootAttempts {
				break
			}
			log.Warn("booting again: "+err.Error(), "kernel", series)
		}
		if err != nil {
			return 0, err
		}
		if out != "" {
			dest := filepath.Join(out, "linux-"+series)
			if err := os.RemoveAll(dest); err != nil {
				return 0, err
			}
			if err := os.CopyFS(dest, os.DirFS(files)); err != nil {
				return 0, err
			}
		}
		if code != 0 {
			fmt.Printf("linux-%s: the end of the kernel's log:\n%s\n", series, tail(readString(filepath.Join(share, "dmesg")), 30))
		}
		if err := os.RemoveAll(files); err != nil {
			return 0, err
		}
		fmt.Printf("linux-%s: exit status %d after %.1fs\n", series, code, time.Since(start).Seconds())
		worst = max(worst, code)
	}
	return worst, nil
}

// build makes a static binary, so that it runs in any guest.
func build(ctx context.Context, pkg, binary string) error {
	if err := os.Setenv("CGO_ENABLED", "0"); err != nil {
		return err
	}
	_, err := output(ctx, "", "go", "build", "-o", binary, pkg)
	return err
}

// guestArgs are this test binary's arguments less those that name files of the host.
func guestArgs(args []string) []string {
	var kept []string
	for _, a := range args {
		switch name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "="); name {
		case "test.testlogfile", "test.outputdir", "test.coverprofile", "test.gocoverdir":
		default:
			kept = append(kept, a)
		}
	}
	return kept
}

// relabel puts the kernel's name before that of each test, so that the results of several guests can be told apart.
type relabel struct {
	w      io.Writer
	prefix string
	line   []byte
}

var testLine = regexp.MustCompile(`^(\s*(?:=== (?:RUN|PAUSE|CONT|NAME) +|--- (?:PASS|FAIL|SKIP): ))(Test|Benchmark)`)

func (r *relabel) Write(b []byte) (int, error) {
	for _, c := range b {
		if r.line = append(r.line, c); c == '\n' {
			r.flush()
		}
	}
	return len(b), nil
}

func (r *relabel) flush() {
	line := testLine.ReplaceAll(r.line, []byte("${1}"+r.prefix+"${2}"))
	if s := string(line); s == "PASS\n" || s == "FAIL\n" {
		line = nil // go test says so once for all guests
	}
	r.w.Write(line)
	r.line = r.line[:0]
}

func copyFile(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, in); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
