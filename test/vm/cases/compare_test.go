//go:build vm

package cases

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hawser.dev/hawser/test/vm/guest"
)

// differencesFile has a table of every difference between the two targets: verb, field, hawser's value, the value of each
// kernel's target ("=" where it is the same as hawser's), and why. Of values, * stands for any and - for none; a field
// or verb that ends in * stands for every one that begins so, and the first row that covers a difference counts.
const differencesFile = "nvmet-differences.md"

// TestCompareWithNVMET compares field by field what nvme-cli shows of hawser's target and of the kernel's, for the
// same backing device. A difference that the table does not explain fails, and so does an explained one that is gone.
func TestCompareWithNVMET(t *testing.T) {
	nqn := testNQN(t)
	export := guest.Export{Path: guest.Loop(t, guest.File(t, "disk", 64<<20), 512), NQN: nqn, UUID: uuid}
	shown := make(map[string]fields)
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
	ours, theirs := shown["hawser"], shown["nvmet"]
	explained := readDifferences(t)
	var unexplained strings.Builder
	all := maps.Clone(ours)
	maps.Copy(all, theirs)
	for _, field := range slices.SortedFunc(maps.Keys(all), func(a, b field) int {
		return strings.Compare(a.verb+" "+a.name, b.verb+" "+b.name)
	}) {
		// Where one of them refuses a command, that is the difference, not each field of the other's answer.
		status := fieldStatus(field.verb)
		if field != status && ours.value(status) != theirs.value(status) || ours.value(field) == theirs.value(field) {
			continue
		}
		row := fmt.Sprintf("| %s | %s | %s | %s |", field.verb, field.name, ours.value(field), theirs.value(field))
		i := slices.IndexFunc(explained, func(d difference) bool { return d.covers(field) })
		switch {
		case i < 0:
			t.Errorf("not explained: %s", row)
			fmt.Fprintln(&unexplained, row)
		case !explained[i].matches(ours.value(field), theirs.value(field)):
			t.Errorf("explained otherwise, for %s and %s: %s", explained[i].hawser, explained[i].nvmet, row)
			fmt.Fprintln(&unexplained, row)
		default:
			explained[i].found = true
		}
	}
	for _, d := range explained {
		// A value that is different each time, a counter say, may happen to be the same.
		if !d.found && d.nvmet != "=" && !(d.hawser == "*" && d.nvmet == "*") {
			t.Errorf("%s explains a difference that there is not: %s %s: hawser %s, nvmet %s", differencesFile, d.verb, d.name,
				ours.value(d.field), theirs.value(d.field))
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

// field names one value that nvme-cli shows.
type field struct{ verb, name string }

// fieldStatus is whether, or why not, a verb worked.
func fieldStatus(verb string) field { return field{verb, "status"} }

type fields map[field]string

func (f fields) value(name field) string {
	if v, ok := f[name]; ok {
		return v
	}
	return "-"
}

type difference struct {
	field
	hawser, nvmet string
	found         bool
}

func (d difference) covers(f field) bool { return covers(d.verb, f.verb) && covers(d.name, f.name) }

func covers(pattern, s string) bool {
	prefix, wild := strings.CutSuffix(pattern, "*")
	return pattern == s || wild && strings.HasPrefix(s, prefix)
}

func (d difference) matches(ours, theirs string) bool {
	return (d.hawser == "*" || d.hawser == ours) && (d.nvmet == "*" || d.nvmet == theirs)
}

// readDifferences reads the table's rows for the running kernel.
func readDifferences(t *testing.T) []difference {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(guest.Share, differencesFile))
	if err != nil {
		t.Fatal(err)
	}
	var rows []difference
	column := -1
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "`")
		}
		switch {
		case len(cells) < 6 || strings.HasPrefix(cells[0], "--"):
		case cells[0] == "Verb":
			if column = slices.Index(cells, "nvmet "+guest.Kernel()); column < 0 {
				t.Fatalf("%s has no column nvmet %s", differencesFile, guest.Kernel())
			}
		default:
			if cells[5] == "" {
				t.Errorf("%s does not say why %s %s differs", differencesFile, cells[0], cells[1])
			}
			rows = append(rows, difference{field: field{cells[0], cells[1]}, hawser: cells[2], nvmet: cells[column]})
		}
	}
	if column < 0 {
		t.Fatalf("%s has no table", differencesFile)
	}
	return rows
}

var statusText = regexp.MustCompile(`(?:"error":"|"status":"|NVMe status: )([^:"]+)`)

// show is every field that nvme-cli shows of a connected subsystem, by verb and field.
func show(t *testing.T, nqn string) fields {
	t.Helper()
	controllers := guest.Controllers(nqn)
	if len(controllers) != 1 {
		t.Fatalf("%q has %d controllers", nqn, len(controllers))
	}
	ctrl, ns := "/dev/"+controllers[0], guest.Namespace(nqn, 1)
	all := make(fields)
	run := func(name string, args ...string) {
		t.Helper()
		r := guest.Try(t, "nvme", append(args, "-o", "json")...)
		if all[fieldStatus(name)] = status(r); r.Code != 0 {
			return
		}
		var v any
		if err := json.Unmarshal([]byte(r.Stdout), &v); err != nil {
			t.Errorf("nvme %s: %v in\n%s", strings.Join(args, " "), err, r.Stdout)
		}
		all.flatten(name, "", v)
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
		// Whether a page is there at all: what is in it is compared above.
		r := guest.Try(t, "nvme", "get-log", ctrl, fmt.Sprintf("--log-id=%d", lid), "--log-len=4096", "--raw-binary")
		all[fieldStatus(fmt.Sprintf("get-log-%02xh", lid))] = status(r)
	}
	for _, fid := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf, 0x10, 0x11, 0x16, 0x18, 0x19, 0x78, 0x80, 0x81, 0x82, 0x83, 0x84} {
		run(fmt.Sprintf("get-feature-%02xh", fid), "get-feature", ctrl, fmt.Sprintf("--feature-id=%d", fid))
	}
	run("get-feature-84h-ns", "get-feature", ctrl, "--feature-id=0x84", "--namespace-id=1")
	return all
}

// status is "success", or the name of the NVMe status that a command ended with.
func status(r guest.Result) string {
	if r.Code == 0 {
		return "success"
	}
	if m := statusText.FindStringSubmatch(r.Stdout + r.Stderr); m != nil {
		return m[1]
	}
	return strings.Join(strings.Fields(r.Stdout+r.Stderr), " ")
}

// flatten names every leaf of a JSON value by its path. Elements of an array go by their type where they have one.
func (f fields) flatten(verb, path string, v any) {
	join := func(key string) string {
		if path == "" {
			return key
		}
		return path + "." + key
	}
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			f.flatten(verb, join(strings.TrimSpace(k)), e)
		}
	case []any:
		for i, e := range v {
			key := fmt.Sprint(i)
			if m, ok := e.(map[string]any); ok && m["Type"] != nil {
				key = fmt.Sprint(m["Type"])
			}
			f.flatten(verb, join(key), e)
		}
	case float64:
		f[field{verb, path}] = fmt.Sprintf("%.0f", v)
	default:
		f[field{verb, path}] = fmt.Sprintf("%q", strings.TrimSpace(fmt.Sprint(v)))
	}
}
