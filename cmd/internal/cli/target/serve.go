package target

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/cmd/internal/cli/size"
	"hawser.dev/hawser/cmd/internal/control"
	"hawser.dev/hawser/nvme"
	targetlite "hawser.dev/hawser/target-lite"
	"hawser.dev/hawser/target-lite/backend"
)

type serveOptions struct {
	listen       []string
	export       []string
	host         []string
	allowAnyHost bool
	control      string
	spin         time.Duration
	inCapsule    int64
	drain        time.Duration
	check        bool
}

func newServe(f *factory.Factory) *cobra.Command {
	opts := &serveOptions{}
	cmd := &cobra.Command{
		Use:   "serve --listen ADDR[:PORT] --export " + exportForm,
		Short: "Export files, block devices or memory until told to stop",
		Long: `Exports what --export names on every --listen, and says so, a line for each, once hosts can connect; under systemd it then
reports that it is ready. SIGTERM and SIGINT end it in order: it finishes what is in flight, and ends with 0.

PATH is a file, a block device, mem:NAME or null:NAME (reads zeroes, forgets writes). A file is made when it is not there
and size= says how large. A comma in PATH is written \, . Options of an export:

  nqn=NQN         export it in this subsystem; several exports may share one (else each has its own)
  nsid=N          namespace ID in the subsystem (else the lowest that is free)
  uuid=UUID       identifier of the volume (else derived from what is behind PATH, the same at every start)
  block=512|4096  bytes of a block (else 512, or what the device has)
  size=SIZE       bytes, for mem: and null: and for a file to be made; K, M, G, T multiply by 1024
  shared          other targets may export the same PATH, if they say so too

What is exported is locked: a device that is mounted or held, or that another target exports, is refused. Only hosts given
by --host may connect and see the volumes, unless --allow-any-host lets in everybody who can reach the port: NVMe/TCP without
authentication trusts the name that a host gives itself.`,
		Example: `  hawser target serve --listen 127.0.0.1 --export disk.img,size=1G --allow-any-host
  hawser target serve --listen 192.0.2.10 --listen [2001:db8::10]:4420 \
      --export /dev/nvme1n1,nqn=nqn.2026-01.org.example:vol1 --host nqn.2014-08.org.nvmexpress:uuid:6f3c1d9e-2b7a-4c55-9d0e-1a2b3c4d5e6f
  hawser target serve --listen 127.0.0.1:0 --export mem:scratch,size=256M --allow-any-host -o jsonl`,
		Args: factory.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), f, opts)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&opts.listen, "listen", nil, "listen on `ADDR[:PORT]`, port 4420 unless given; 0.0.0.0 and [::] mean every address; repeatable")
	fl.StringArrayVar(&opts.export, "export", nil, "export `PATH[,OPTION…]`; repeatable")
	fl.StringArrayVar(&opts.host, "host", nil, "let the host with this `NQN` connect; repeatable")
	fl.BoolVar(&opts.allowAnyHost, "allow-any-host", false, "let every host connect")
	fl.StringVar(&opts.control, "control", "", "answer 'hawser target list' on this unix `SOCKET` (else one in the runtime folder)")
	fl.Var((*spinValue)(&opts.spin), "spin", "let idle queues poll for this `DURATION` before they sleep, or forever: faster, for a processor each")
	opts.inCapsule = 16 << 10
	fl.Var((*sizeValue)(&opts.inCapsule), "in-capsule", "take up to `SIZE` bytes of write data within a command; 0 none")
	fl.BoolVar(&opts.check, "check", false, "open the exports and bind the portals, say what would be exported, and end; a file to be made is removed again")
	fl.DurationVar(&opts.drain, "drain-timeout", 10*time.Second, "when told to stop, cut off after this `DURATION` what has not finished")
	exit.Document(cmd, exit.Unreachable, exit.Permission, exit.InUse)
	return cmd
}

// Volume is an exported namespace, as it is printed.
type Volume struct {
	URL       string     `json:"url,omitempty"` // missing where every portal listens on all addresses
	Target    nvme.NQN   `json:"target"`
	NSID      uint32     `json:"nsid"`
	UUID      nvme.UUID  `json:"uuid"`
	NGUID     nvme.NGUID `json:"nguid"`
	Size      int64      `json:"size"`      // bytes
	BlockSize int        `json:"blockSize"` // bytes
	ReadOnly  bool       `json:"readOnly,omitempty"`
	Backing   string     `json:"backing"`
}

// Served is what 'target serve' prints when hosts can connect.
type Served struct {
	output.Header
	Check   bool     `json:"check,omitempty"` // nothing is exported, it would be
	PID     int      `json:"pid"`
	Control string   `json:"control,omitempty"` // socket
	Portals []string `json:"portals"`
	Volumes []Volume `json:"volumes"`
}

func serve(ctx context.Context, f *factory.Factory, opts *serveOptions) error {
	portals, err := parseListens(opts.listen)
	if err != nil {
		return err
	}
	exports, err := parseExports(opts.export)
	if err != nil {
		return err
	}
	hosts, err := parseHosts(opts.host)
	switch {
	case err != nil:
		return err
	case len(portals) == 0:
		return exit.New(exit.Usage, errors.New("no --listen: there is no address to export on"),
			"--listen 127.0.0.1 is for this machine only, --listen 0.0.0.0 for everybody who can reach it")
	case len(exports) == 0:
		return exit.New(exit.Usage, errors.New("no --export: there is nothing to export"), "--export "+exportForm)
	case len(hosts) == 0 && !opts.allowAnyHost:
		return exit.New(exit.Usage, errors.New("neither --host nor --allow-any-host: nobody could connect"),
			"give the host NQN that 'hawser host show' prints on the host")
	case len(hosts) > 0 && opts.allowAnyHost:
		return exit.Usagef("--host and --allow-any-host contradict each other: give one of them")
	case opts.inCapsule%16 != 0 || opts.inCapsule > targetlite.DefaultMaxTransfer:
		return exit.Usagef("--in-capsule %s: must be a multiple of 16 bytes up to %s, or 0 for none",
			size.Format(opts.inCapsule), size.Format(targetlite.DefaultMaxTransfer))
	case opts.drain < 0:
		return exit.Usagef("--drain-timeout %v: must not be below zero", opts.drain)
	}
	log := f.Logger()

	srv, undo, err := start(ctx, exports, targetlite.Config{
		Portals:   portals,
		Spin:      opts.spin,
		InCapsule: inCapsule(opts.inCapsule),
		Logger:    log,
	}, access{hosts, opts.allowAnyHost})
	if err != nil {
		return err
	}
	if opts.check {
		defer undo()
		return announce(f, srv.Status(), "", true)
	}
	socket, listener, err := listenControl(f, opts.control)
	if err != nil {
		if opts.control != "" {
			undo()
			return err
		}
		log.Warn("'hawser target list' will not see this target", "err", err)
	}

	// Signals only begin the end: work goes on until it is drained or the time for that is over.
	work := context.WithoutCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(work) }()
	if listener != nil {
		c := control.NewServer(service, log)
		control.Handle(c, "status", func(context.Context, struct{}) (targetlite.Status, error) { return srv.Status(), nil })
		controlCtx, stop := context.WithCancel(work)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := c.Serve(controlCtx, listener); err != nil {
				log.Error("control socket", "err", err)
			}
		}()
		defer func() { stop(); <-done }()
	}
	printErr := announce(f, srv.Status(), socket, false)
	if printErr == nil {
		if err := notify(f.IO.Env("NOTIFY_SOCKET"), "READY=1"); err != nil {
			log.Warn("systemd was not told that the target is ready", "err", err)
		}
		select {
		case err := <-served:
			return explain(err)
		case <-ctx.Done():
		}
	}

	_ = notify(f.IO.Env("NOTIFY_SOCKET"), "STOPPING=1")
	log.Info("draining", "connections", srv.Status().Connections)
	drainCtx, cancel := context.WithTimeoutCause(work, opts.drain, fmt.Errorf("not everything had finished after %v (--drain-timeout)", opts.drain))
	defer cancel()
	if err := srv.Shutdown(drainCtx); err != nil {
		<-served
		if cause := context.Cause(drainCtx); cause != nil {
			err = exit.New(exit.Unreachable, cause, "what hosts had in flight was cut off; they try again on another path")
		}
		return errors.Join(printErr, err)
	}
	return errors.Join(printErr, explain(<-served))
}

type access struct {
	hosts []nvme.NQN
	any   bool
}

// start opens all exports and binds all portals, or leaves nothing behind. What undo takes back is a server that never served.
func start(ctx context.Context, exports []export, cfg targetlite.Config, who access) (srv *targetlite.Server, undo func(), err error) {
	var opened []backend.Backend
	var made []string
	undo = func() {
		if srv != nil {
			srv.Close()
		} else {
			for _, b := range opened {
				b.Close()
			}
		}
		for _, path := range made {
			os.Remove(path)
		}
	}
	defer func() {
		if err != nil {
			undo()
			srv, undo = nil, nil
		}
	}()
	index := make(map[nvme.NQN]int)
	threads := backend.NewThreads(4 * backend.MaxWorkers)
	for _, e := range exports {
		_, statErr := os.Lstat(e.path)
		b, err := backend.Open(ctx, e.path, backend.Options{BlockSize: e.block, Size: e.size, Shared: e.shared, Threads: threads})
		if err != nil {
			return srv, undo, explainOpen(e, err)
		}
		opened = append(opened, b)
		backing, err := backingOf(e.path)
		if err != nil {
			return srv, undo, explainOpen(e, err)
		}
		if _, err := os.Lstat(e.path); err == nil && errors.Is(statErr, fs.ErrNotExist) {
			made = append(made, e.path)
		}
		nqn := e.nqn
		if nqn == "" {
			nqn = targetlite.DefaultNQN(b.Info().Identity)
		}
		i, ok := index[nqn]
		if !ok {
			i = len(cfg.Subsystems)
			index[nqn] = i
			cfg.Subsystems = append(cfg.Subsystems, targetlite.Subsystem{NQN: nqn, Hosts: who.hosts, AllowAnyHost: who.any})
		}
		cfg.Subsystems[i].Namespaces = append(cfg.Subsystems[i].Namespaces, targetlite.Namespace{NSID: e.nsid, Backend: b, Spec: backing, UUID: e.uuid})
	}
	s, err := targetlite.New(cfg)
	if err != nil {
		return srv, undo, explain(err)
	}
	srv = s
	if err := srv.Listen(ctx); err != nil {
		return srv, undo, explain(err)
	}
	return srv, undo, nil
}

// backingOf is an export's path as it is shown: absolute, because who asks may stand in another folder.
func backingOf(path string) (string, error) {
	if kind, _, ok := strings.Cut(path, ":"); ok && (kind == "mem" || kind == "null") {
		return path, nil
	}
	return filepath.Abs(path)
}

func inCapsule(n int64) int {
	if n == 0 {
		return -1
	}
	return int(n)
}

// listenControl makes the control socket: where it was asked for, or in the runtime folder.
func listenControl(f *factory.Factory, asked string) (path string, l *net.UnixListener, err error) {
	if path, err = filepath.Abs(asked); asked == "" {
		path, err = socketOf(socketDir(f), os.Getpid()), nil
		sweep(socketDir(f))
	}
	if err != nil {
		return "", nil, err
	}
	switch l, err = control.Listen(path); {
	case errors.Is(err, control.ErrServed):
		err = exit.New(exit.InUse, err, "choose another --control, or stop what listens there")
	case err != nil && asked != "" && !errors.As(err, new(syscall.Errno)):
		err = exit.New(exit.Usage, err, "--control takes a short path in a folder of your own with mode 0700")
	}
	return path, l, err
}

// sweep removes what targets that were killed left in the folder of sockets: where neither the process lives nor anybody answers.
func sweep(dir string) {
	sockets, _ := findSockets(dir)
	for pid, path := range sockets {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		c, err := control.Dial(ctx, path, service)
		cancel()
		if err == nil {
			c.Close()
		} else if control.IsDown(err) {
			os.Remove(path)
		}
	}
}

// announce prints what is exported, and where.
func announce(f *factory.Factory, st targetlite.Status, socket string, check bool) error {
	doc := Served{Check: check, PID: os.Getpid(), Control: socket, Portals: st.Portals, Volumes: volumes(st)}
	return f.Printer().Print(output.View{Doc: doc, Text: func(t *output.Text) error {
		listening, exporting := "listening on", "exporting"
		if check {
			listening, exporting = "would listen on", "would export"
		}
		for _, p := range doc.Portals {
			t.Printf("%s %s\n", listening, p)
		}
		for _, v := range doc.Volumes {
			where := v.URL
			if where == "" {
				where = fmt.Sprintf("%s nsid=%d", v.Target, v.NSID)
			}
			t.Printf("%s %s, %s, as %s\n", exporting, t.Safe(v.Backing), size.Format(v.Size), t.Bold(where))
		}
		return nil
	}})
}

// volumes lists the namespaces of a target.
func volumes(st targetlite.Status) []Volume {
	list := []Volume{}
	for _, sub := range st.Subsystems {
		for _, ns := range sub.Namespaces {
			list = append(list, exported(st.Portals, sub.NQN, ns))
		}
	}
	return list
}

func exported(portals []string, nqn nvme.NQN, ns targetlite.NamespaceStatus) Volume {
	return Volume{
		URL: url(portals, nqn, ns.UUID), Target: nqn, NSID: ns.NSID, UUID: ns.UUID, NGUID: ns.NGUID,
		Size: ns.Size, BlockSize: ns.BlockSize, ReadOnly: ns.ReadOnly, Backing: ns.Backing,
	}
}

// url is the volume's TARGET on the first portal that has an address of its own.
func url(portals []string, nqn nvme.NQN, uuid nvme.UUID) string {
	for _, p := range portals {
		portal, err := attach.ParsePortal(p)
		if err != nil {
			continue
		}
		if a, err := netip.ParseAddr(portal.Host); err == nil && !a.IsUnspecified() {
			return attach.Target{Portal: portal, Name: string(nqn), Namespace: attach.NamespaceRef{UUID: uuid}}.String()
		}
	}
	return ""
}

// notify tells the service manager about a change of state (sd_notify(3)); without one it does nothing.
func notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.WriteString(c, state)
	return err
}

// explainOpen gives the failure to open an export its code, and names the export.
func explainOpen(e export, err error) error {
	code, hint := exit.CodeOf(err), ""
	switch {
	case errors.Is(err, backend.ErrInUse):
		code = exit.InUse
		hint = "unmount or stop what uses it; if another target exports it, both must say ,shared"
	case errors.Is(err, backend.ErrInvalid):
		code = exit.Usage
		hint = "the form is --export " + exportForm
	case errors.Is(err, fs.ErrNotExist):
		code = exit.Usage
	case code == exit.Permission:
		hint = "run it as root, or as a user who may read and write it"
	}
	return exit.New(code, fmt.Errorf("--export %s: %w", e.path, err), hint)
}

// explain gives the errors of a server their codes and remedies.
func explain(err error) error {
	var portal *targetlite.PortalError
	switch {
	case errors.As(err, &portal):
		code, hint := exit.CodeOf(err), "'ip address' lists the addresses of this host"
		switch {
		case errors.Is(err, syscall.EINVAL):
			code, hint = exit.Usage, "an address of one link needs its interface, which must be there: [fe80::1%IFACE]; 'ip link' lists them"
		case errors.Is(err, syscall.EADDRINUSE):
			hint = "stop what listens there, or choose another port: --listen ADDR:PORT"
		case errors.Is(err, syscall.EACCES):
			hint = "ports below 1024 need root: choose a higher one"
		}
		return exit.New(code, fmt.Errorf("--listen %s: %w", portal.Portal, portal.Err), hint)
	case errors.Is(err, targetlite.ErrInvalid), errors.As(err, new(*nvme.NQNError)):
		return exit.New(exit.Usage, err, "")
	}
	return err
}

type spinValue time.Duration

func (v *spinValue) Type() string { return "DURATION" }

func (v *spinValue) String() string {
	if *v < 0 {
		return "forever"
	}
	return time.Duration(*v).String()
}

func (v *spinValue) Set(s string) error {
	if s == "forever" {
		*v = -1
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return errors.New("must be a duration such as 50us, or forever")
	}
	*v = spinValue(d)
	return nil
}

type sizeValue int64

func (v *sizeValue) Type() string   { return "SIZE" }
func (v *sizeValue) String() string { return size.Format(int64(*v)) }

func (v *sizeValue) Set(s string) error {
	n, err := size.Parse(s)
	*v = sizeValue(n)
	return err
}
