package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Manager brings volumes online and lets them go. Any number of processes may work on the same Store at once.
type Manager struct {
	Store   *Store
	Drivers []Driver
	Prober  Prober
	Resolve Resolver     // nil: host names are compared as they are written
	Log     *slog.Logger // nil discards
}

// Plan says what attaching a Spec would do.
type Plan struct {
	Spec     *Spec
	Name     string
	Identity Identity
	Driver   Driver
	Existing *Record    // the attachment that is there already, nil for none
	Status   Status     // of it, where Live
	Live     bool       // it is there in fact
	Missing  []PathSpec // paths to be made
}

// Changes reports whether carrying the plan out changes anything. Waiting for a path to come back does not.
func (p *Plan) Changes() bool {
	return p.Existing == nil || p.Existing.State != StateAttached || p.gone() || p.givenUp() || len(p.Missing) > 0
}

// gone says that what is recorded is not there.
func (p *Plan) gone() bool { return p.Status.State == "" }

// givenUp says that a path is there that does not come back by itself.
func (p *Plan) givenUp() bool {
	return slices.ContainsFunc(p.Status.Paths, func(path Path) bool { return path.State == PathDead })
}

// Steps are what would be done, for people.
func (p *Plan) Steps() []string {
	if !p.Changes() {
		return nil
	}
	var steps []string
	switch {
	case p.Existing == nil:
	case p.Existing.State != StateAttached:
		steps = append(steps, fmt.Sprintf("finish what left it %s", p.Existing.State))
	case p.gone():
		steps = append(steps, "attach again what is recorded but gone")
	case p.givenUp():
		steps = append(steps, "connect again the path that was given up")
	}
	for _, path := range p.Missing {
		steps = append(steps, "connect "+path.String())
	}
	return append(steps, "show it as "+p.Name)
}

// Times that bound what is not the caller's own work.
const (
	statusTimeout  = 3 * time.Second  // for a driver to answer a look
	undoTimeout    = 10 * time.Second // to take back what failed
	recoverTimeout = 15 * time.Second // to finish what another call left behind
	recoverFlush   = 2 * time.Second  // for the flush in that
)

func (m *Manager) log() *slog.Logger {
	if m.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return m.Log
}

func (m *Manager) driver(name string) (Driver, error) {
	if name == "" || name == DriverAuto {
		name = DriverUser
	}
	for _, d := range m.Drivers {
		if d.Name() == name {
			return d, nil
		}
	}
	return nil, &Error{Cause: CauseUnsupported, Err: fmt.Errorf("--driver %s: this hawser cannot attach by that driver", name), Hint: "use --driver user"}
}

// Attach brings a volume online, or finds that it is.
func (m *Manager) Attach(ctx context.Context, spec Spec) (Volume, error) {
	m.Recover(ctx)
	var known *Identity
	for {
		p, err := m.plan(ctx, &spec, known)
		if err != nil {
			return Volume{}, err
		}
		lock, err := m.Store.Lock(ctx, p.Name)
		if err != nil {
			return Volume{}, err
		}
		// Somebody else may have been at work until now: what counts is how things are under the lock.
		known = &p.Identity
		v, again, err := m.attachLocked(ctx, &spec, known, p.Name)
		lock.Unlock()
		if !again {
			return v, err
		}
	}
}

// attachLocked plans once more and carries it out; again says that the plan is for another name.
func (m *Manager) attachLocked(ctx context.Context, spec *Spec, known *Identity, name string) (v Volume, again bool, err error) {
	p, err := m.plan(ctx, spec, known)
	if err != nil {
		return Volume{}, false, err
	}
	if p.Name != name {
		return Volume{}, true, nil
	}
	v, err = m.apply(ctx, p)
	return v, false, err
}

// Check says what Attach would do, and changes nothing.
func (m *Manager) Check(ctx context.Context, spec Spec) (Volume, error) {
	p, err := m.plan(ctx, &spec, nil)
	if err != nil {
		return Volume{}, err
	}
	changed := p.Changes()
	r := p.Existing
	if r == nil {
		r = m.newRecord(p)
		r.Since = time.Time{}
	}
	v := r.volume()
	v.Changed, v.State, v.Plan = &changed, VolumePlanned, p.Steps()
	if !changed {
		v.see(p.Status)
	}
	for _, path := range p.Missing {
		v.Paths = append(v.Paths, Path{Portal: path.Portal.String(), Binding: path.Binding.String(), State: VolumePlanned})
	}
	return v, nil
}

func (m *Manager) newRecord(p *Plan) *Record {
	return &Record{
		SchemaVersion: SchemaVersion, Name: p.Name, State: StateAttaching, Spec: *p.Spec, Identity: p.Identity,
		Driver: p.Driver.Name(), Paths: p.Spec.Paths(), Since: time.Now().UTC().Truncate(time.Second),
	}
}

// plan compares what is asked with what is there. known is the volume, where the target has been asked already.
func (m *Manager) plan(ctx context.Context, spec *Spec, known *Identity) (*Plan, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	driver, err := m.driver(spec.Driver)
	if err != nil {
		return nil, err
	}
	if err := driver.Check(spec, spec.Paths()); err != nil {
		return nil, err
	}
	records, err := m.Store.List()
	if err != nil {
		if records == nil {
			return nil, err
		}
		m.log().Warn("a record is left out", "err", err)
	}
	p := &Plan{Spec: spec, Driver: driver}
	var mine []*Record // of this subsystem, as this host
	for _, r := range records {
		if r.Spec.Target.Protocol == spec.Target.Protocol && r.Spec.Target.Name == spec.Target.Name &&
			r.Spec.HostNQN == spec.HostNQN && r.Spec.HostID == spec.HostID {
			mine = append(mine, r)
		}
	}
	// The same question asked again, or a volume asked for by an identifier that its record holds, needs no answer from
	// the target: it was proven when it was attached.
	ref := spec.Target.Namespace
	if known == nil {
		for _, r := range mine {
			if r.Spec.Target.Namespace == ref || !ref.IsZero() && ref.NSID == 0 && r.Identity.Is(ref) {
				if missing := m.missing(ctx, spec, r); len(missing) == 0 {
					p.Existing, known = r, &r.Identity
					break
				}
			}
		}
	}
	if known == nil {
		known, err = m.identify(ctx, spec)
		if err != nil {
			return nil, err
		}
	}
	p.Identity = *known
	for _, r := range mine {
		if p.Existing == nil && r.Identity.Same(*known) {
			p.Existing = r
		}
	}
	if r := p.Existing; r != nil {
		p.Name = r.Name
		if err := conflict(r, spec); err != nil {
			return nil, err
		}
		p.Missing = m.missing(ctx, spec, r)
		if len(p.Missing) > 0 {
			if err := driver.Check(spec, slices.Concat(r.Paths, p.Missing)); err != nil {
				return nil, err
			}
		}
		look, cancel := context.WithTimeout(ctx, statusTimeout)
		defer cancel()
		if p.Status, err = driver.Status(look, r); err == nil {
			p.Live = p.Status.State == VolumeLive
		} else if !errors.Is(err, ErrNotAttached) {
			return nil, err
		}
		return p, nil
	}
	p.Missing = spec.Paths()
	p.Name = spec.Name
	if p.Name == "" {
		p.Name = known.Name()
	}
	if err := freeName(p.Name, *known, records); err != nil {
		return nil, err
	}
	return p, nil
}

// identify asks the target and finds the one volume that is meant.
func (m *Manager) identify(ctx context.Context, spec *Spec) (*Identity, error) {
	all, err := m.Prober.Volumes(ctx, spec)
	if err != nil {
		return nil, err
	}
	ref := spec.Target.Namespace
	var found []Identity
	for _, id := range all {
		if id.Is(ref) {
			found = append(found, id)
		}
	}
	switch {
	case len(found) == 1:
		return &found[0], nil
	case len(all) == 0:
		return nil, &Error{Cause: CauseNotFound, Err: fmt.Errorf("%s has no namespace for this host", spec.Target.Name),
			Hint: "the target may map namespaces to hosts: this one is " + string(spec.HostNQN)}
	case len(found) == 0:
		return nil, &Error{Cause: CauseNotFound, Err: fmt.Errorf("%s has no namespace %s", spec.Target.Name, ref), Hint: "there are: " + listIDs(all)}
	case ref.IsZero():
		return nil, &Error{Cause: CauseUsage, Err: fmt.Errorf("%s has %d namespaces", spec.Target.Name, len(all)),
			Hint: "append one of them: " + listIDs(all)}
	}
	return nil, fmt.Errorf("%s shows %d namespaces with the identifier %s", spec.Target.Name, len(found), ref)
}

func listIDs(ids []Identity) string {
	const most = 16
	var b strings.Builder
	for i, id := range ids {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(ids)-most)
			break
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("#" + id.String())
	}
	return b.String()
}

// freeName checks that a new attachment of id may be called name.
func freeName(name string, id Identity, records []*Record) error {
	if name == "" {
		return &Error{Cause: CauseUsage, Err: fmt.Errorf("namespace %d has no UUID, NGUID or EUI-64 to be named after", id.NSID), Hint: "give it a name by --name"}
	}
	if ref, err := ParseNamespaceRef(name); err == nil && ref.NSID == 0 && !id.Is(ref) {
		return usagef("--name %s: this is the identifier of another volume: the one asked for is %s", name, id)
	}
	for _, r := range records {
		if r.Name == name {
			return &Error{Cause: CauseInUse, Err: fmt.Errorf("the name %s is taken by %s", name, r.Spec.Target), Hint: "give another name by --name"}
		}
	}
	return nil
}

// conflict checks that an attachment that is there can be the answer to spec.
func conflict(r *Record, spec *Spec) error {
	var differ []string
	o, has := &spec.Options, &r.Spec.Options
	for _, c := range []struct {
		flag   string
		differ bool
	}{
		{"driver", spec.Driver != "" && spec.Driver != DriverAuto && spec.Driver != r.Driver},
		{"frontend", spec.Frontend != "" && spec.Frontend != FrontendAuto && spec.Frontend != r.Frontend},
		{"read-only", spec.ReadOnly != r.Spec.ReadOnly},
		{"nr-io-queues", o.NrIOQueues != 0 && o.NrIOQueues != has.NrIOQueues},
		{"nr-write-queues", o.NrWriteQueues != 0 && o.NrWriteQueues != has.NrWriteQueues},
		{"nr-poll-queues", o.NrPollQueues != 0 && o.NrPollQueues != has.NrPollQueues},
		{"queue-size", o.QueueSize != 0 && o.QueueSize != has.QueueSize},
		{"keep-alive-tmo", differs(o.KeepAliveTMO, has.KeepAliveTMO)},
		{"reconnect-delay", differs(o.Reconnect, has.Reconnect)},
		{"ctrl-loss-tmo", differs(o.CtrlLossTMO, has.CtrlLossTMO)},
		{"fast-io-fail-tmo", differs(o.FastIOFailTMO, has.FastIOFailTMO)},
		{"tos", differs(o.TOS, has.TOS)},
		{"hdr-digest", o.HdrDigest && !has.HdrDigest},
		{"data-digest", o.DataDigest && !has.DataDigest},
		{"disable-sqflow", o.DisableSQFlow && !has.DisableSQFlow},
		{"tls", o.TLS && !has.TLS},
		{"dhchap-secret", !o.DHCHAPSecret.isZero() && o.DHCHAPSecret != has.DHCHAPSecret},
		{"dhchap-ctrl-secret", !o.DHCHAPCtrlSecret.isZero() && o.DHCHAPCtrlSecret != has.DHCHAPCtrlSecret},
	} {
		if c.differ {
			differ = append(differ, "--"+c.flag)
		}
	}
	if spec.Name != "" && spec.Name != r.Name {
		return &Error{Cause: CauseInUse, Err: fmt.Errorf("--name %s: the volume is attached as %s", spec.Name, r.Name), Hint: "use that name, or detach it first"}
	}
	if len(differ) > 0 {
		return &Error{Cause: CauseInUse, Err: fmt.Errorf("%s is attached otherwise: %s differs", r.Name, strings.Join(differ, ", ")), Hint: "detach it first"}
	}
	return nil
}

func differs(asked, has *int) bool { return asked != nil && (has == nil || *asked != *has) }

// missing are the paths of spec that r does not have.
func (m *Manager) missing(ctx context.Context, spec *Spec, r *Record) []PathSpec {
	var missing []PathSpec
	for _, want := range spec.Paths() {
		if !slices.ContainsFunc(r.Paths, func(has PathSpec) bool {
			return want.Binding == has.Binding && m.samePortal(ctx, want.Portal, has.Portal)
		}) {
			missing = append(missing, want)
		}
	}
	return missing
}

// samePortal is Portal.Equal, with host names looked up where one is not equal to the other as it stands.
func (m *Manager) samePortal(ctx context.Context, p, q Portal) bool {
	if p.Equal(q) {
		return true
	}
	if m.Resolve == nil || !(Portal{p.Protocol, withHost(p, "")}).Equal(Portal{q.Protocol, withHost(q, "")}) {
		return false
	}
	addrs := func(host string) []netip.Addr {
		if a, err := netip.ParseAddr(host); err == nil {
			return []netip.Addr{a.Unmap()}
		}
		found, err := m.Resolve(ctx, host)
		if err != nil {
			m.log().Debug("cannot look up", "host", host, "err", err)
		}
		for i := range found {
			found[i] = found[i].Unmap()
		}
		return found
	}
	_, errP := netip.ParseAddr(p.Host)
	_, errQ := netip.ParseAddr(q.Host)
	if errP == nil && errQ == nil {
		return false
	}
	theirs := addrs(q.Host)
	return slices.ContainsFunc(addrs(p.Host), func(a netip.Addr) bool { return slices.Contains(theirs, a) })
}

// apply carries a plan out. The lock of its name is held.
func (m *Manager) apply(ctx context.Context, p *Plan) (Volume, error) {
	changed := p.Changes()
	r := p.Existing
	if r != nil && r.State == StateAttached && !p.gone() && len(p.Missing) == 0 {
		// The record stays as it is: whatever ends this call, the volume is somebody's already.
		st := p.Status
		if !p.Live || p.givenUp() {
			var err error
			if st, err = p.Driver.Attach(ctx, r); err != nil {
				return Volume{}, err
			}
		}
		v := r.volume()
		v.Changed = &changed
		v.see(st)
		return v, nil
	}
	before := r // what is put back when it fails; nil: nothing
	if r == nil || r.State == StateDetaching || !p.Live && r.State == StateAttaching {
		before = nil
	}
	now := m.newRecord(p)
	if r != nil {
		now.Spec, now.Identity, now.Agent = r.Spec, r.Identity, r.Agent
		now.Paths = slices.Concat(r.Paths, p.Missing)
		if !p.gone() {
			now.Since = r.Since
		}
	}
	if err := m.reserve(ctx, p, now); err != nil {
		return Volume{}, err
	}
	undo := func() {
		if before == nil || p.gone() { // else it was there before, and is not this call's to take down
			m.undo(ctx, p.Driver, now)
		}
	}
	st, err := p.Driver.Attach(ctx, now)
	if err == nil && !st.Identity.Same(now.Identity) {
		err = &Error{Cause: CauseInUse, Err: fmt.Errorf("the device says it is %s, not %s", st.Identity, now.Identity),
			Hint: "the target has changed what it shows: look at it before using either"}
		undo()
	}
	if err == nil {
		now.State, now.Identity = StateAttached, st.Identity
		if err = m.Store.Put(now); err != nil {
			undo()
		}
	}
	if err != nil {
		if before != nil {
			return Volume{}, errors.Join(err, m.Store.Put(before))
		}
		return Volume{}, errors.Join(err, m.Store.Delete(now.Name))
	}
	v := now.volume()
	v.Changed = &changed
	v.see(st)
	return v, nil
}

// reserve puts the intent on record. The store's lock keeps two calls from taking one volume under two names.
func (m *Manager) reserve(ctx context.Context, p *Plan, now *Record) error {
	lock, err := m.Store.LockAll(ctx)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	records, err := m.Store.List()
	if err != nil {
		m.log().Warn("a record is left out", "err", err)
	}
	others := slices.DeleteFunc(records, func(r *Record) bool { return r.Name == now.Name })
	for _, r := range others {
		if r.Spec.Target.Name == now.Spec.Target.Name && r.Spec.HostNQN == now.Spec.HostNQN && r.Identity.Same(now.Identity) {
			return conflict(r, &Spec{Name: now.Name, ReadOnly: r.Spec.ReadOnly})
		}
	}
	if err := p.Driver.Prepare(now, others); err != nil {
		return err
	}
	return m.Store.Put(now)
}

// undo takes back what an attach made, also when the caller has no more time.
func (m *Manager) undo(ctx context.Context, d Driver, r *Record) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if _, err := d.Detach(ctx, r, DetachOptions{Force: true}); err != nil && !errors.Is(err, ErrNotAttached) {
		m.log().Warn("cannot take back", "volume", r.Name, "err", err)
	}
}

// see adds what the driver sees.
func (v *Volume) see(st Status) {
	v.State, v.Clients = st.State, st.Clients
	if st.Paths != nil {
		v.Paths = st.Paths
	}
	if st.Agent != nil {
		v.Agent = st.Agent
	}
	if st.Identity.Size > 0 {
		v.Size, v.BlockSize = st.Identity.Size, st.Identity.BlockSize
	}
	for _, p := range v.Paths {
		if p.State != PathLive {
			v.Degraded = true
			missing := p.Portal
			if p.Binding != "" {
				missing += " by " + p.Binding
			}
			v.Missing = append(v.Missing, missing)
		}
	}
}

// Recover finishes or cleans up what calls that died left behind: a record that says attaching or detaching while nobody
// holds its lock. What cannot be done now stays for the next call.
func (m *Manager) Recover(ctx context.Context) {
	records, _ := m.Store.List() // one that cannot be understood is the plan's to complain of
	for _, r := range records {
		if r.State == StateAttached {
			continue
		}
		lock, err := m.Store.TryLock(r.Name)
		if err != nil {
			continue // somebody is at work on it
		}
		if r, err = m.Store.Get(r.Name); err == nil && r.State != StateAttached {
			if err := m.recover(ctx, r); err != nil {
				m.log().Warn("cannot finish what another call left behind", "volume", r.Name, "state", string(r.State), "err", err)
			}
		}
		lock.Unlock()
	}
	m.Store.Sweep()
	if records, err := m.Store.List(); err == nil {
		for _, d := range m.Drivers {
			d.Sweep(records)
		}
	}
}

func (m *Manager) recover(ctx context.Context, r *Record) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	d, err := m.driver(r.Driver)
	if err != nil {
		return err
	}
	if r.State == StateAttaching {
		// Complete or in use, and the very volume: finished. Anything less is taken back.
		st, err := d.Status(ctx, r)
		if err == nil && (st.State == VolumeLive || len(st.Clients) > 0) && st.Identity.Same(r.Identity) {
			r.State = StateAttached
			return m.Store.Put(r)
		}
	}
	_, err = d.Detach(ctx, r, DetachOptions{Force: r.Force || r.State == StateAttaching, FlushTimeout: recoverFlush})
	switch {
	case err == nil, errors.Is(err, ErrNotAttached):
		return m.Store.Delete(r.Name)
	case CauseOf(err) == CauseInUse: // somebody uses it by now: it stays
		r.State, r.Force = StateAttached, false
		return errors.Join(err, m.Store.Put(r))
	}
	return err
}

// Selector says which attachments are meant: by name, device or identifier, or by target.
type Selector struct {
	Text      string  // as given
	Target    *Target // a target; nil for a name, device or identifier
	AnyPortal bool    // the target's portal does not matter
	HostNQN   string  // only attachments made as this host; empty for any
}

// ParseSelector reads TARGET, VOLUME or DEVICE.
func ParseSelector(s string) (Selector, error) {
	sel := Selector{Text: s}
	if strings.Contains(s, "://") && !strings.HasPrefix(s, "nbd") {
		t, err := ParseTarget(s)
		sel.Target = &t
		return sel, err
	}
	if sel.device() {
		return sel, nil
	}
	return sel, ValidName(s)
}

func (s *Selector) device() bool {
	return strings.HasPrefix(s.Text, "/") || strings.Contains(s.Text, "://")
}

// find returns the record that is meant, nil where a target is meant that is not attached.
func (m *Manager) find(ctx context.Context, sel Selector) (*Record, error) {
	records, bad := m.Store.List()
	var found []*Record
	for _, r := range records {
		if m.selects(ctx, sel, r) {
			found = append(found, r)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		names := make([]string, len(found))
		for i, r := range found {
			names[i] = r.Name
		}
		return nil, &Error{Cause: CauseUsage, Err: fmt.Errorf("%s means %d volumes", quote(sel.Text), len(found)), Hint: "name one of them: " + strings.Join(names, " ")}
	case bad != nil:
		return nil, bad
	case sel.Target != nil:
		return nil, nil
	}
	what := "volume"
	if sel.device() {
		what = "device"
	}
	return nil, &Error{Cause: CauseNotFound, Err: fmt.Errorf("no %s %s is attached", what, quote(sel.Text)), Hint: "'hawser list' shows what is"}
}

func (m *Manager) selects(ctx context.Context, sel Selector, r *Record) bool {
	if t := sel.Target; t != nil {
		return r.Spec.Target.Protocol == t.Protocol && r.Spec.Target.Name == t.Name && r.Identity.Is(t.Namespace) &&
			(sel.HostNQN == "" || string(r.Spec.HostNQN) == sel.HostNQN) &&
			(sel.AnyPortal || slices.ContainsFunc(r.Paths, func(p PathSpec) bool { return m.samePortal(ctx, t.Portal, p.Portal) }))
	}
	if r.Name == sel.Text || r.Device == sel.Text {
		return true
	}
	if sel.device() {
		return r.Device == SocketDevice(sel.Text)
	}
	ref, err := ParseNamespaceRef(sel.Text)
	return err == nil && ref.NSID == 0 && r.Identity.Is(ref)
}

// Detach lets a volume go. What is not attached stays so, unchanged; a name or device that is unknown is CauseNotFound.
// With check it only says what would be done, and whether something is in the way.
func (m *Manager) Detach(ctx context.Context, sel Selector, opts DetachOptions, check bool) (Volume, error) {
	if !check {
		m.Recover(ctx)
	}
	r, err := m.find(ctx, sel)
	if err != nil {
		return Volume{}, err
	}
	unchanged := false
	if r == nil {
		return Volume{Name: sel.Target.Namespace.String(), Protocol: string(sel.Target.Protocol), Target: sel.Target.Name,
			URL: sel.Target.String(), State: VolumeDetached, Paths: []Path{}, Changed: &unchanged}, nil
	}
	d, err := m.driver(r.Driver)
	if err != nil {
		return Volume{}, err
	}
	if check {
		return m.checkDetach(ctx, d, r, opts)
	}
	lock, err := m.Store.Lock(ctx, r.Name)
	if err != nil {
		return Volume{}, err
	}
	defer lock.Unlock()
	v := r.volume()
	v.State, v.Changed = VolumeDetached, &unchanged
	if r, err = m.Store.Get(r.Name); errors.Is(err, fs.ErrNotExist) {
		return v, nil // another call was faster
	}
	if err != nil {
		return Volume{}, err
	}
	before := r.State
	r.State, r.Force = StateDetaching, opts.Force
	if err := m.Store.Put(r); err != nil {
		return Volume{}, err
	}
	res, err := d.Detach(ctx, r, opts)
	if err != nil && !errors.Is(err, ErrNotAttached) {
		r.State, r.Force = before, false
		return Volume{}, errors.Join(err, m.Store.Put(r))
	}
	if err := m.Store.Delete(r.Name); err != nil {
		return Volume{}, err
	}
	changed := true
	v.Changed, v.DataLost = &changed, res.DataLost
	return v, nil
}

func (m *Manager) checkDetach(ctx context.Context, d Driver, r *Record, opts DetachOptions) (Volume, error) {
	changed := true
	v := r.volume()
	v.State, v.Changed = VolumeDetached, &changed
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	st, err := d.Status(ctx, r)
	if errors.Is(err, ErrNotAttached) {
		return v, nil
	}
	if err != nil {
		return Volume{}, err
	}
	if len(st.Clients) > 0 && !opts.Force {
		return Volume{}, InUse(r.Name, st.Clients)
	}
	return v, nil
}

// InUse is the error for a volume that somebody has open.
func InUse(name string, clients []Client) error {
	who := make([]string, len(clients))
	for i, c := range clients {
		who[i] = fmt.Sprintf("process %d", c.PID)
		if c.Command != "" {
			who[i] += " " + c.Command
		}
	}
	return &Error{Cause: CauseInUse, Err: fmt.Errorf("%s is in use, clients connected: %d (%s)", name, len(clients), strings.Join(who, ", ")),
		Hint: "end them first, or use --force, which cuts them off"}
}

// List shows all attachments. Records that cannot be understood are left out and make the error.
func (m *Manager) List(ctx context.Context) ([]Volume, error) {
	records, err := m.Store.List()
	if err != nil && records == nil {
		return nil, err
	}
	volumes := make([]Volume, len(records))
	slots := make(chan struct{}, 16)
	var wg sync.WaitGroup
	for i, r := range records {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			volumes[i] = m.look(ctx, r)
		})
	}
	wg.Wait()
	return volumes, err
}

// Show shows one attachment.
func (m *Manager) Show(ctx context.Context, sel Selector) (Volume, error) {
	r, err := m.find(ctx, sel)
	if err != nil {
		return Volume{}, err
	}
	if r == nil {
		return Volume{}, &Error{Cause: CauseNotFound, Err: fmt.Errorf("%s is not attached", sel.Target), Hint: "'hawser list' shows what is"}
	}
	return m.look(ctx, r), nil
}

// look is a volume as it is now. A driver that does not answer makes it VolumeUnknown, with the reason.
func (m *Manager) look(ctx context.Context, r *Record) Volume {
	v := r.volume()
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	d, err := m.driver(r.Driver)
	var st Status
	if err == nil {
		st, err = d.Status(ctx, r)
	}
	state := PathUnknown
	switch {
	case err == nil:
	case errors.Is(err, ErrNotAttached):
		v.State, state = VolumeDead, PathDead
		v.Warning = "what held it is gone: attach it again, or detach it"
	default:
		v.State, v.Warning = VolumeUnknown, err.Error()
	}
	for _, p := range r.Paths {
		v.Paths = append(v.Paths, Path{Portal: p.Portal.String(), Binding: p.Binding.String(), State: state})
	}
	if err == nil {
		v.see(st)
	}
	if r.State != StateAttached {
		v.State = string(r.State)
		v.Warning = "a call is at work on it, or was cut short: the next attach or detach finishes that"
	}
	return v
}
