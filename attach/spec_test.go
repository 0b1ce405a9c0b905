package attach

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hawser.dev/hawser/nvme"
)

func testSpec(t testing.TB, url string) Spec {
	t.Helper()
	target, err := ParseTarget(url)
	if err != nil {
		t.Fatal(err)
	}
	return Spec{SchemaVersion: SchemaVersion, Target: target, HostNQN: "nqn.2014-08.org.nvmexpress:uuid:09d9c24a-9af3-4f8a-8acc-973722aa575a"}
}

func mustPortal(t testing.TB, s string) Portal {
	t.Helper()
	p, err := ParsePortal(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustBinding(t testing.TB, s string) Binding {
	t.Helper()
	b, err := ParseBinding(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ptr[T any](v T) *T { return &v }

// fullSpec has every field set.
func fullSpec(t testing.TB) Spec {
	s := testSpec(t, "nvme://192.0.2.10/"+testNQN+"#"+testUUID)
	s.Name, s.Driver, s.Frontend, s.ReadOnly, s.MinPaths = "data", DriverUser, FrontendSocket, true, 2
	s.Portals = []Portal{mustPortal(t, "192.0.2.11:4421")}
	s.Bindings = []Binding{mustBinding(t, "eth1/192.0.2.21"), mustBinding(t, "eth2")}
	s.HostID = nvme.UUID{1, 2, 3}
	s.Options = Options{
		NrIOQueues: 4, NrWriteQueues: 2, NrPollQueues: 1, QueueSize: 64, KeepAliveTMO: ptr(0), Reconnect: ptr(3), CtrlLossTMO: ptr(-1),
		FastIOFailTMO: ptr(7), TOS: ptr(8), HdrDigest: true, DataDigest: true, DisableSQFlow: true, DuplicateConn: true, TLS: true,
		DHCHAPSecret: SecretRef{"/etc/nvme/key"}, DHCHAPCtrlSecret: SecretRef{"/etc/nvme/ctrl-key"},
	}
	return s
}

// The fields of a Spec, retyped: a change of the schema is deliberate.
const fullJSON = `{"schemaVersion":1,"name":"data","target":"nvme://192.0.2.10/nqn.2026-01.org.example:vol1#7f1c5d66-9b1e-4b55-a1f0-3c6c1b0c9f11",` +
	`"portals":["192.0.2.11:4421"],"bindings":["eth1/192.0.2.21","eth2"],"minPaths":2,"driver":"user","frontend":"socket","readOnly":true,` +
	`"hostNQN":"nqn.2014-08.org.nvmexpress:uuid:09d9c24a-9af3-4f8a-8acc-973722aa575a","hostID":"01020300-0000-0000-0000-000000000000",` +
	`"options":{"nrIOQueues":4,"nrWriteQueues":2,"nrPollQueues":1,"queueSize":64,"keepAliveTMO":0,"reconnectDelay":3,"ctrlLossTMO":-1,"fastIOFailTMO":7,"tos":8,` +
	`"hdrDigest":true,"dataDigest":true,"disableSQFlow":true,"duplicateConnect":true,"tls":true,"dhchapSecret":"@/etc/nvme/key","dhchapCtrlSecret":"@/etc/nvme/ctrl-key"}}`

func TestSpecSchema(t *testing.T) {
	want := fullSpec(t)
	if err := want.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(want)
	if err != nil || string(b) != fullJSON {
		t.Errorf("%v\n got %s\nwant %s", err, b, fullJSON)
	}
	var fromJSON, fromYAML Spec
	if err := json.Unmarshal(b, &fromJSON); err != nil {
		t.Fatal(err)
	}
	y, err := yaml.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalWithOptions(y, &fromYAML, yaml.Strict()); err != nil {
		t.Fatalf("%v\n%s", err, y)
	}
	// YAML has the names of JSON.
	back, err := yaml.YAMLToJSON(y)
	if err != nil {
		t.Fatal(err)
	}
	var a, c any
	if json.Unmarshal([]byte(fullJSON), &a) != nil || json.Unmarshal(back, &c) != nil {
		t.Fatal("no JSON")
	}
	if d := cmp.Diff(a, c); d != "" {
		t.Error(d)
	}
	addr := cmpopts.EquateComparable(Binding{})
	for name, got := range map[string]Spec{"JSON": fromJSON, "YAML": fromYAML} {
		if d := cmp.Diff(want, got, addr); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// Frontends that are known but not built are no usage errors, and the remedy names one that is.
func TestFrontendNotBuilt(t *testing.T) {
	for _, word := range []string{FrontendUblk, FrontendNBD} {
		s := testSpec(t, "nvme://192.0.2.10/"+testNQN)
		s.Frontend = word
		var e *Error
		if err := s.Validate(); !errors.As(err, &e) || e.Cause != CauseUnsupported || !strings.Contains(e.Error(), "--frontend "+word) || !strings.Contains(e.Hint, "socket") {
			t.Errorf("%s: %v", word, err)
		}
	}
}

func TestSpecValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"schema":          {func(s *Spec) { s.SchemaVersion = 2 }, "schemaVersion 2"},
		"name":            {func(s *Spec) { s.Name = "../x" }, `--name: name "../x"`},
		"no target":       {func(s *Spec) { s.Target.Name = "" }, "target is missing"},
		"portal kind":     {func(s *Spec) { s.Portals = []Portal{mustPortal(t, "iscsi://192.0.2.1")} }, "--portal iscsi://192.0.2.1"},
		"portal twice":    {func(s *Spec) { s.Portals = []Portal{mustPortal(t, "192.0.2.10:4420")} }, "given twice"},
		"binding twice":   {func(s *Spec) { s.Bindings = []Binding{mustBinding(t, "eth1"), mustBinding(t, "eth1")} }, "--bind eth1"},
		"min paths":       {func(s *Spec) { s.MinPaths = 2 }, "--min-paths 2"},
		"negative paths":  {func(s *Spec) { s.MinPaths = -1 }, "--min-paths -1"},
		"driver":          {func(s *Spec) { s.Driver = "magic" }, `--driver "magic"`},
		"frontend":        {func(s *Spec) { s.Frontend = "magic" }, `--frontend "magic"`},
		"host NQN":        {func(s *Spec) { s.HostNQN = "me" }, "--hostnqn"},
		"discovery host":  {func(s *Spec) { s.HostNQN = nvme.DiscoveryNQN }, "--hostnqn"},
		"queue size":      {func(s *Spec) { s.Options.QueueSize = 8 }, "--queue-size 8: must be from 16 to 1024"},
		"queues":          {func(s *Spec) { s.Options.NrIOQueues = -1 }, "--nr-io-queues -1"},
		"keep alive":      {func(s *Spec) { s.Options.KeepAliveTMO = ptr(-1) }, "--keep-alive-tmo -1"},
		"long keep alive": {func(s *Spec) { s.Options.KeepAliveTMO = ptr(1 << 23) }, "--keep-alive-tmo"},
		"reconnect":       {func(s *Spec) { s.Options.Reconnect = ptr(0) }, "--reconnect-delay 0"},
		"tos":             {func(s *Spec) { s.Options.TOS = ptr(256) }, "--tos 256"},
		"ctrl secret":     {func(s *Spec) { s.Options.DHCHAPCtrlSecret.File = "k" }, "--dhchap-ctrl-secret"},
	} {
		s := testSpec(t, "nvme://192.0.2.10/"+testNQN)
		tt.change(&s)
		if err := s.Validate(); CauseOf(err) != CauseUsage || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestPathsAreEveryPortalByEveryBinding(t *testing.T) {
	s := fullSpec(t)
	var got []string
	for _, p := range s.Paths() {
		got = append(got, p.String())
	}
	want := []string{"192.0.2.10:4420 by eth1/192.0.2.21", "192.0.2.10:4420 by eth2", "192.0.2.11:4421 by eth1/192.0.2.21", "192.0.2.11:4421 by eth2"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// A literal secret is refused, and does not come back in the error.
func TestSecretsAreReferences(t *testing.T) {
	const secret = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:"
	_, err := ParseSecretRef(secret)
	if CauseOf(err) != CauseUsage || !strings.Contains(err.Error(), "@FILE") || strings.Contains(err.Error(), secret) {
		t.Errorf("got %v", err)
	}
	if _, err := ParseSecretRef("@"); err == nil {
		t.Error("no file")
	}
	if r, err := ParseSecretRef("@key"); err != nil || r.String() != "@key" {
		t.Errorf("%v, %v", r, err)
	}
}
