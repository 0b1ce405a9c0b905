package size

import "testing"

func TestParse(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "512": 512, "4K": 4096, "4k": 4096, "4KiB": 4096, "4kb": 4096, "64M": 64 << 20, "1.5G": 3 << 29,
		"10GiB": 10 << 30, "2T": 2 << 40, "1P": 1 << 50, "7E": 7 << 60, "9223372036854775807": 1<<63 - 1,
	} {
		if got, err := Parse(s); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "K", "-1", "+1", "1.5", "0.3K", "1e3", "4KK", "4 K", "0x10", "8E", "9223372036854775808", "1.G", ".5G", "99999999999999999999G", "4Kib7", "NaN", "InfG"} {
		if got, err := Parse(s); err == nil {
			t.Errorf("%q: %d", s, got)
		}
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 64 << 20: "64 MiB", 1<<30 + 1<<20: "1.0 GiB", 1<<63 - 1: "8 EiB",
	} {
		if got := Format(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"0", "1.5G", "10GiB", "8E", "9223372036854775807", "0.0000000000001E", "K"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := Parse(s); err == nil && (n < 0 || Format(n) == "") {
			t.Errorf("%q: %d", s, n)
		}
	})
}
