// Package demo is 'hawser demo': the whole life of a volume on this machine.
package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/attach/frontend/nbd"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/iostreams"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/cmd/internal/cli/size"
	"hawser.dev/hawser/cmd/internal/cli/volume"
	"hawser.dev/hawser/cmd/internal/userdriver"
	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/wire"
	targetlite "hawser.dev/hawser/target-lite"
	"hawser.dev/hawser/target-lite/backend"
)

const (
	volumeSize   = 64 << 20
	chunk        = 1 << 20
	cleanTimeout = 10 * time.Second
)

type options struct {
	timeout factory.Timeout
}

// New returns the command.
func New(f *factory.Factory) *cobra.Command {
	opts := &options{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole life of a volume on this machine, in a minute, touching nothing",
		Long: `Makes a file of 64 MiB in the directory for temporary files, exports it over NVMe/TCP on a free port of the loopback
interface, discovers and attaches it with hawser's own initiator, writes and verifies it through the NBD socket that it becomes,
shows the volume, and takes everything down again. It needs no root and no kernel module, and leaves nothing behind.`,
		Example: "  hawser demo\n  go run ./cmd/hawser demo",
		Args:    factory.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), f, opts)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	opts.timeout.AddFlag(cmd, time.Minute)
	exit.Document(cmd, exit.Unreachable)
	return cmd
}

// Shown is what 'demo' prints.
type Shown struct {
	output.Header
	OK           bool           `json:"ok"`
	Steps        []Step         `json:"steps"`
	Volume       *attach.Volume `json:"volume,omitempty"` // as it was attached
	Milliseconds float64        `json:"milliseconds"`
}

// Step is one thing that was done.
type Step struct {
	Name         string  `json:"name"`
	Milliseconds float64 `json:"milliseconds"`
	What         string  `json:"what"` // for people
}

type stepLine struct {
	output.Header
	Step
}

// demo is what the steps share.
type demo struct {
	f     *factory.Factory
	live  bool // steps are printed as they are done
	doc   Shown
	undo  []func(context.Context) error // in the order to be undone, last first
	start time.Time

	progress *iostreams.Progress // of the step under way

	dir, file string
	hostNQN   nvme.NQN
	hostID    nvme.UUID
	target    attach.Target
	manager   *attach.Manager
	seed      [32]byte
}

func run(ctx context.Context, f *factory.Factory, opts *options) error {
	limited, cancel := opts.timeout.Context(ctx)
	defer cancel()
	d := &demo{f: f, live: !f.Format().Machine(), start: time.Now(), hostID: nvme.NewUUID()}
	d.hostNQN = nvme.UUIDNQN(d.hostID)
	rand.Read(d.seed[:])
	// Without a reader it still takes down what it has made.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)

	err := d.steps(limited)
	err = d.explain(factory.Explain(limited, err))
	// What is still there goes, whatever ended the demo.
	clean, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer stop()
	err = errors.Join(err, d.takeDown(clean))

	d.doc.OK, d.doc.Milliseconds = err == nil, ms(time.Since(d.start))
	if d.live {
		if err == nil {
			_, err = fmt.Fprintf(f.IO.Out, "done in %.2f s, nothing is left\n", time.Since(d.start).Seconds())
			err = exit.New(exit.Failed, err, "")
		}
		return err
	}
	lines := make([]output.Document, len(d.doc.Steps))
	for i, s := range d.doc.Steps {
		lines[i] = stepLine{Step: s}
	}
	return errors.Join(err, f.Printer().Print(output.View{Doc: d.doc, Lines: lines}))
}

// explain puts the last line of the agent's log, which will be gone, in place of a hint to look there.
func (d *demo) explain(err error) error {
	if err == nil || d.dir == "" {
		return err
	}
	logs, _ := filepath.Glob(filepath.Join(d.dir, "run", "agents", "*", "log"))
	for _, path := range logs {
		if b, readErr := os.ReadFile(path); readErr == nil && len(bytes.TrimSpace(b)) > 0 {
			lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
			return exit.New(exit.CodeOf(err), err, "the agent's log ends with: "+string(lines[len(lines)-1]))
		}
	}
	return err
}

func (d *demo) steps(ctx context.Context) error {
	for _, s := range []struct {
		name string
		do   func(context.Context) (what string, err error)
	}{
		{"create", d.create},
		{"export", d.export},
		{"discover", d.discover},
		{"attach", d.attach},
		{"again", d.again},
		{"write", d.write},
		{"verify", d.verify},
		{"show", d.show},
		{"detach", d.detach},
	} {
		if err := d.step(ctx, s.name, s.do); err != nil {
			return err
		}
	}
	return nil
}

// step does one thing, takes its time, and tells of it.
func (d *demo) step(ctx context.Context, name string, do func(context.Context) (string, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.progress = d.f.IO.StartProgress(name)
	begin := time.Now()
	what, err := do(ctx)
	took := time.Since(begin)
	d.progress.Done()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	d.doc.Steps = append(d.doc.Steps, Step{Name: name, Milliseconds: ms(took), What: what})
	if !d.live {
		return nil
	}
	name = output.NewPalette(d.f.IO.ColorOut()).Bold(fmt.Sprintf("%-9s", name))
	// Further lines stand below the first.
	_, err = fmt.Fprintf(d.f.IO.Out, "%s %7.1f ms  %s\n", name, ms(took), strings.ReplaceAll(what, "\n", fmt.Sprintf("\n%22s", "")))
	return exit.New(exit.Failed, err, "")
}

// takeDown undoes what is still there, last first.
func (d *demo) takeDown(ctx context.Context) error {
	var errs []error
	for len(d.undo) > 0 {
		last := d.undo[len(d.undo)-1]
		d.undo = d.undo[:len(d.undo)-1]
		if err := last(ctx); err != nil {
			errs = append(errs, fmt.Errorf("cleaning up: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (d *demo) create(context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "hawser-demo-")
	if err != nil {
		return "", err
	}
	d.dir = dir
	d.undo = append(d.undo, func(context.Context) error { return os.RemoveAll(dir) })
	d.file = filepath.Join(dir, "disk.img")
	f, err := os.Create(d.file)
	if err != nil {
		return "", err
	}
	if err := errors.Join(f.Truncate(volumeSize), f.Close()); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, %s", d.file, size.Format(volumeSize)), nil
}

func (d *demo) export(ctx context.Context) (string, error) {
	b, err := backend.Open(ctx, d.file, backend.Options{})
	if err != nil {
		return "", err
	}
	nqn := targetlite.DefaultNQN(b.Info().Identity)
	srv, err := targetlite.New(targetlite.Config{
		Portals: []nvme.Addr{{Transport: nvme.TransportTCP, Host: "127.0.0.1", Service: "0"}},
		Subsystems: []targetlite.Subsystem{{
			NQN: nqn, Hosts: []nvme.NQN{d.hostNQN},
			Namespaces: []targetlite.Namespace{{Backend: b, Spec: d.file}},
		}},
		Logger: d.f.Logger(),
	})
	if err != nil {
		b.Close()
		return "", err
	}
	if err := srv.Listen(ctx); err != nil {
		srv.Close()
		return "", err
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.WithoutCancel(ctx)) }()
	d.undo = append(d.undo, func(ctx context.Context) error {
		return errors.Join(srv.Shutdown(ctx), <-served)
	})
	st := srv.Status()
	portal, err := attach.ParsePortal(st.Portals[0])
	if err != nil {
		return "", err
	}
	d.target = attach.Target{Portal: portal, Name: string(nqn), Namespace: attach.NamespaceRef{UUID: st.Subsystems[0].Namespaces[0].UUID}}
	return fmt.Sprintf("%s on %s\nfor host %s alone", nqn, portal, d.hostNQN), nil
}

func (d *demo) discover(ctx context.Context) (string, error) {
	found, err := host.Discover(ctx, d.target.Addr, host.Options{HostNQN: d.hostNQN, HostID: d.hostID, Logger: d.f.Logger()})
	if err != nil {
		return "", err
	}
	for i := range found.Records {
		if r := &found.Records[i]; r.SUBTYPE == wire.SubtypeNVM && string(r.SUBNQN) == d.target.Name {
			return fmt.Sprintf("%s offers it", r.From), nil
		}
	}
	return "", fmt.Errorf("%s does not offer %s", d.target.Portal, d.target.Name)
}

// spec is what is attached, under a name short enough for its socket to fit in an address wherever temporary files are.
func (d *demo) spec() attach.Spec {
	return attach.Spec{
		SchemaVersion: attach.SchemaVersion, Name: "demo", Target: d.target, Driver: attach.DriverUser,
		HostNQN: d.hostNQN, HostID: d.hostID,
	}
}

func (d *demo) attach(ctx context.Context) (string, error) {
	driver, err := volume.Driver(d.f, filepath.Join(d.dir, "run"))
	if err != nil {
		return "", err
	}
	d.manager = &attach.Manager{
		Store: driver.Store, Drivers: []attach.Driver{driver}, Prober: &userdriver.Initiator{Log: d.f.Logger()}, Log: d.f.Logger(),
	}
	d.undo = append(d.undo, func(ctx context.Context) error {
		_, err := d.manager.Detach(ctx, attach.Selector{Text: d.target.String(), Target: &d.target}, attach.DetachOptions{Force: true}, false)
		return errors.Join(err, driver.Store.Close())
	})
	v, err := d.manager.Attach(ctx, d.spec())
	if err != nil {
		return "", err
	}
	d.doc.Volume = &v
	return v.Device, nil
}

func (d *demo) again(ctx context.Context) (string, error) {
	v, err := d.manager.Attach(ctx, d.spec())
	if err != nil {
		return "", err
	}
	if v.Changed == nil || *v.Changed {
		return "", errors.New("attaching twice changed something")
	}
	return "attached a second time: unchanged", nil
}

// client is a connection to the socket that the volume became, as any NBD client would make one.
func (d *demo) client(ctx context.Context) (*nbd.Client, error) {
	socket, err := d.socket()
	if err != nil {
		return nil, err
	}
	return nbd.Dial(ctx, socket, "")
}

// socket takes the path out of the device, which is an NBD URI.
func (d *demo) socket() (string, error) {
	u, err := url.Parse(d.doc.Volume.Device)
	if err != nil {
		return "", err
	}
	return u.Query().Get("socket"), nil
}

// data is the stream that is written: random, and the same at every call.
func (d *demo) data() io.Reader { return mathrand.NewChaCha8(d.seed) }

func (d *demo) write(ctx context.Context) (string, error) {
	c, err := d.client(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	begin := time.Now()
	b, data := make([]byte, chunk), d.data()
	for off := int64(0); off < volumeSize; off += chunk {
		d.progress.Bar("write", off, volumeSize)
		if _, err := io.ReadFull(data, b); err != nil {
			return "", err
		}
		if err := c.WriteAt(ctx, b, off); err != nil {
			return "", err
		}
	}
	if err := c.Flush(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s of random data through the NBD socket, and a flush: %s/s", size.Format(volumeSize), rate(time.Since(begin))), nil
}

func (d *demo) verify(ctx context.Context) (string, error) {
	c, err := d.client(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	file, err := os.Open(d.file)
	if err != nil {
		return "", err
	}
	defer file.Close()
	begin := time.Now()
	want, got, data := make([]byte, chunk), make([]byte, chunk), d.data()
	for off := int64(0); off < volumeSize; off += chunk {
		d.progress.Bar("verify", off, volumeSize)
		if _, err := io.ReadFull(data, want); err != nil {
			return "", err
		}
		if err := c.ReadAt(ctx, got, off); err != nil {
			return "", err
		}
		if !bytes.Equal(want, got) {
			return "", fmt.Errorf("the volume does not hold what was written in the %s from %d on", size.Format(chunk), off)
		}
		if _, err := file.ReadAt(got, off); err != nil {
			return "", err
		}
		if !bytes.Equal(want, got) {
			return "", fmt.Errorf("%s does not hold what was written in the %s from %d on", d.file, size.Format(chunk), off)
		}
	}
	return fmt.Sprintf("the same data from the socket, and in the file behind the target: %s/s", rate(time.Since(begin))), nil
}

func (d *demo) show(ctx context.Context) (string, error) {
	sel, err := attach.ParseSelector(d.doc.Volume.Name)
	if err != nil {
		return "", err
	}
	v, err := d.manager.Show(ctx, sel)
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("%s, %s in blocks of %d, driver %s, frontend %s, %s", v.UUID, size.Format(v.Size), v.BlockSize, v.Driver, v.Frontend, v.State)
	for _, p := range v.Paths {
		text += fmt.Sprintf("\npath to %s: %s", p.Portal, p.State)
	}
	return text, nil
}

func (d *demo) detach(ctx context.Context) (string, error) {
	socket, err := d.socket()
	if err != nil {
		return "", err
	}
	sel, err := attach.ParseSelector(d.doc.Volume.Name)
	if err != nil {
		return "", err
	}
	v, err := d.manager.Detach(ctx, sel, attach.DetachOptions{}, false)
	if err != nil {
		return "", err
	}
	if v.Changed == nil || !*v.Changed {
		return "", errors.New("it was not attached any more")
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is still there", socket)
	}
	if err := d.takeDown(ctx); err != nil {
		return "", err
	}
	if _, err := os.Lstat(d.dir); !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is still there", d.dir)
	}
	return "flushed and gone; target stopped, file removed", nil
}

func rate(took time.Duration) string {
	return size.Format(int64(float64(volumeSize)/took.Seconds()) >> 20 << 20)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
