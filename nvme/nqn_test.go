package nvme

import (
	"errors"
	"strings"
	"testing"
)

func TestParseNQN(t *testing.T) {
	longest := "nqn.2014-08.com.example:" + strings.Repeat("x", MaxNQNLen-24)
	for _, s := range []string{
		"nqn.2014-08.org.nvmexpress.discovery",
		"nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
		"nqn.2014-08.org.nvmexpress:uuid:F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6",
		"nqn.2014-08.com.example:nvme:nvm-subsystem-sn-d78432",
		"nqn.2014-08.com.example:nvme.host.sys.xyz",
		"nqn.2016-06.io.spdk:cnode1",
		"nqn.2007-12.com.3par:disk",
		"nqn.2024-01.local:データ",
		"nqn.2014-08.org.nvmexpress:NVMf:old",
		longest,
	} {
		n, err := ParseNQN(s)
		if err != nil || string(n) != s {
			t.Errorf("ParseNQN(%q) = %q, %v", s, n, err)
		}
	}
	for _, s := range []string{
		"", "nqn", "nqn.", "x", "testnqn",
		"NQN.2014-08.com.example:x",
		"iqn.2014-08.com.example:x",
		"nqn.2014-8.com.example:x",
		"nqn.2014-00.com.example:x",
		"nqn.2014-13.com.example:x",
		"nqn.2014_08.com.example:x",
		"nqn.201a-08.com.example:x",
		"nqn.2014-08com.example:x",
		"nqn.2014-08.", "nqn.2014-08.:x", "nqn.2014-08.com..example:x",
		"nqn.2014-08.-com.example:x", "nqn.2014-08.com-.example:x", "nqn.2014-08.com.exa_mple:x",
		"nqn.2014-08." + strings.Repeat("a", 64) + ":x",
		"nqn.2014-08.com.example", "nqn.2014-08.com.example:",
		"nqn.2014-08.org.nvmexpress:uuid:",
		"nqn.2014-08.org.nvmexpress:uuid:f81d4fae7dec11d0a76500a0c91e6bf6",
		"nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6x",
		"nqn.2014-08.com.example:\x00", "nqn.2014-08.com.example:a\nb", "nqn.2014-08.com.example:\x1b[2J",
		"nqn.2014-08.com.example:\xff",
		longest + "x",
	} {
		var e *NQNError
		if n, err := ParseNQN(s); !errors.As(err, &e) || n != "" || e.NQN != s {
			t.Errorf("ParseNQN(%q) = %q, %v", s, n, err)
		}
	}
}

func TestNQNComparedWhole(t *testing.T) {
	if NQN("nqn.2014-08.com.example:a") == NQN("nqn.2014-08.com.example:A") {
		t.Error("case is folded")
	}
	if !DiscoveryNQN.Discovery() || (DiscoveryNQN + ":x").Discovery() || NQN("").Discovery() {
		t.Error("Discovery does not compare the whole name")
	}
	u, _ := ParseUUID("f81d4fae-7dec-11d0-a765-00a0c91e6bf6")
	if n := UUIDNQN(u); n != "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6" || n.Validate() != nil {
		t.Errorf("UUIDNQN = %q, %v", n, n.Validate())
	}
}

func FuzzParseNQN(f *testing.F) {
	f.Add("nqn.2014-08.org.nvmexpress.discovery")
	f.Add("nqn.2014-08.com.example:x")
	f.Add("nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseNQN(s)
		if err == nil && (string(n) != s || len(s) > MaxNQNLen || !strings.HasPrefix(s, "nqn.") || strings.ContainsAny(s, "\x00\n\x1b")) {
			t.Errorf("accepted %q", s)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("error is not one clean line: %q", err)
		}
	})
}
