//go:build vm

package cases

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hawser.dev/hawser/test/vm/guest"
)

// differencesFile has a table of every difference between the two targets: verb, field, hawser's value, the value of each
// kernel's target ("=" where it is the same as hawser's), and why. "*" stands for any value, "-" for none.
const differencesFile = "nvmet-differences.md"

// TestCompareWithNVMET compares field by field what nvme-cli shows of hawser's target and of the kernel's, for the
// same backing device. A difference that the table does not explain fails, and so does an explained one that is gone.
func TestCompareWithNVMET(t *testing.T) {
	nqn := testNQN(t)
	export := guest.Export{Path: guest.Loop(t, guest.File(t, "disk", 64<<20), 512), NQN: nqn, UUID: uuid}
	shown := make(map[string]map[string]string)
	for name, start := range map[string]guest.Starter{"hawser": guest.Hawser, "nvmet": guest.NVMET} {
		t.Run(name, func(t *testing.T) {
			guest.Connect(t, start(t, "127.0.0.1", export), nqn, "--nr-io-queues=1")
			shown[name] = show(t, nqn)
			if len(shown[name]) < 300 {
				t.Errorf("nvme-cli shows %d fields", len(shown[name]))
			}
		})
	}
	if t.Failed() {
		return
	}
	explained := readDifferences(t)
	found := make(map[string]bool)
	var unexplained strings.Builder
	fields := maps.Clone(shown["hawser"])
	maps.Copy(fields, shown["nvmet"])
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		ours, theirs := value(shown["hawser"], field), value(shown["nvmet"], field)
		d, ok := explained[field]
		switch {
		case ours == theirs && (!ok || d.hawser == "*"):
			found[field] = true
		case ours == theirs:
		case !ok:
			t.Errorf("%s: hawser %s, nvmet %s: not explained", field, ours, theirs)
			verb, name, _ := strings.Cut(field, " ")
			fmt.Fprintf(&unexplained, "| %s | %s | %s | %s | |\n", verb, name, ours, theirs)
		case !d.matches(ours, theirs):
			t.Errorf("%s: hawser %s, nvmet %s: explained for %s and %s", field, ours, theirs, d.hawser, d.nvmet)
		default:
			found[field] = true
		}
	}
	for field, d := range explained {
		if !found[field] && d.nvmet != "=" {
			t.Errorf("%s: %s explains a difference that there is not: hawser %s, nvmet %s", field, differencesFile,
				value(shown["hawser"], field), value(shown["nvmet"], field))
		}
	}
	if unexplained.Len() > 0 {
		if err := os.MkdirAll(guest.Out, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(guest.Out, differencesFile), []byte(unexplained.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func value(shown map[string]string, field string) string {
	if v, ok := shown[field]; ok {
		return v
	}
	return "-"
}

type difference struct{ hawser, nvmet string }

func (d difference) matches(ours, theirs string) bool {
	return (d.hawser == "*" || d.hawser == ours) && (d.nvmet == "*" || d.nvmet == theirs)
}

// readDifferences reads the table's rows for the running kernel, by verb and field.
func readDifferences(t *testing.T) map[string]difference {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(guest.Share, differencesFile))
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]difference)
	column := -1
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "`")
		}
		switch {
		case len(cells) < 6 || strings.HasPrefix(cells[0], "--"):
		case cells[0] == "Verb":
			column = slices.Index(cells, "nvmet "+guest.Kernel())
			if column < 0 {
				t.Fatalf("%s has no column nvmet %s", differencesFile, guest.Kernel())
			}
		default:
			if cells[5] == "" {
				t.Errorf("%s %s: %s does not say why", cells[0], cells[1], differencesFile)
			}
			rows[cells[0]+" "+cells[1]] = difference{hawser: cells[2], nvmet: cells[column]}
		}
	}
	if column < 0 {
		t.Fatalf("%s has no table", differencesFile)
	}
	return rows
}

// show is every field that nvme-cli shows of a connected subsystem, by verb and field.
func show(t *testing.T, nqn string) map[string]string {
	t.Helper()
	controllers := guest.Controllers(nqn)
	if len(controllers) != 1 {
		t.Fatalf("%q has %d controllers", nqn, len(controllers))
	}
	ctrl, ns := "/dev/"+controllers[0], guest.Namespace(nqn, 1)
	all := make(map[string]string)
	run := func(name string, args ...string) {
		t.Helper()
		r := guest.Try(t, "nvme", append(args, "-o", "json")...)
		if r.Code != 0 {
			all[name+" status"] = strings.ReplaceAll(strings.TrimSpace(strings.ReplaceAll(r.Stderr+r.Stdout, "\n", " ")), "|", "/")
			return
		}
		var v any
		if err := json.Unmarshal([]byte(r.Stdout), &v); err != nil {
			all[name+" text"] = strings.Join(strings.Fields(r.Stdout), " ")
			return
		}
		flatten(all, name+" ", v)
	}
	run("id-ctrl", "id-ctrl", ctrl)
	run("nvm-id-ctrl", "nvm-id-ctrl", ctrl)
	run("id-ns", "id-ns", ns, "-n", "1")
	run("id-ns-absent", "id-ns", ctrl, "-n", "2")
	run("nvm-id-ns", "nvm-id-ns", ctrl, "-n", "1")
	run("cmset-ind-id-ns", "cmset-ind-id-ns", ctrl, "-n", "1")
	run("list-ns", "list-ns", ctrl)
	run("list-ctrl", "list-ctrl", ctrl)
	run("ns-descs", "ns-descs", ns, "-n", "1")
	run("smart-log", "smart-log", ctrl)
	run("error-log", "error-log", ctrl)
	run("fw-log", "fw-log", ctrl)
	run("effects-log", "effects-log", ctrl, "--csi=0")
	run("changed-ns-list-log", "changed-ns-list-log", ctrl)
	run("ana-log", "ana-log", ctrl)
	run("supported-log-pages", "supported-log-pages", ctrl)
	run("fid-support-effects-log", "fid-support-effects-log", ctrl)
	for lid := range 0x14 {
		// Whether a page is there at all, and the start of it, whatever nvme-cli makes of it.
		r := guest.Try(t, "nvme", "get-log", ctrl, fmt.Sprintf("--log-id=%d", lid), "--log-len=64", "--raw-binary")
		name := fmt.Sprintf("get-log-%02xh", lid)
		if r.Code != 0 {
			all[name+" status"] = strings.TrimSpace(strings.ReplaceAll(r.Stderr, "\n", " "))
		} else {
			all[name+" bytes"] = fmt.Sprintf("%x", r.Stdout)
		}
	}
	for _, fid := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf, 0x10, 0x11, 0x16, 0x18, 0x19, 0x78, 0x80, 0x81, 0x82, 0x83, 0x84} {
		run(fmt.Sprintf("get-feature-%02xh", fid), "get-feature", ctrl, fmt.Sprintf("--feature-id=%d", fid))
	}
	run("get-feature-84h-ns", "get-feature", ctrl, "--feature-id=0x84", "--namespace-id=1")
	return all
}

// flatten names every leaf of a JSON value by its path.
func flatten(to map[string]string, path string, v any) {
	join := func(key string) string {
		if strings.HasSuffix(path, " ") {
			return path + key
		}
		return path + "." + key
	}
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			flatten(to, join(k), e)
		}
	case []any:
		for i, e := range v {
			flatten(to, join(fmt.Sprint(i)), e)
		}
	case float64:
		to[path] = fmt.Sprintf("%.0f", v)
	default:
		to[path] = strings.TrimSpace(fmt.Sprint(v))
		if to[path] == "" {
			to[path] = `""`
		}
	}
}
