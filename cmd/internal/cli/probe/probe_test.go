package probe

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"testing"

	"hawser.dev/hawser/attach/hostid"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/iostreams"
)

// What listens but is no NVMe/TCP target is told from one that does not listen, by step and code.
func TestNoTarget(t *testing.T) {
	for _, tc := range []struct {
		name    string
		answer  func(net.Conn)
		timeout string
		code    exit.Code
		failed  string
	}{
		{"closes", func(c net.Conn) { io.CopyN(io.Discard, c, 128) }, "1m", exit.Unreachable, stepICReq},
		{"other protocol", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n"); io.Copy(io.Discard, c) }, "1m", exit.Failed, stepICReq},
		{"silent", func(c net.Conn) { io.Copy(io.Discard, c) }, "100ms", exit.Unreachable, stepICReq},
		// An ICResp (NVMe/TCP 3.6.2.3), and then nothing.
		{"handshake only", func(c net.Conn) {
			b := make([]byte, 128)
			if _, err := io.ReadFull(c, b); err == nil {
				resp := make([]byte, 128)
				copy(resp, []byte{1, 0, 128, 0, 128, 0, 0, 0})
				resp[13] = 0x10 // MAXH2CDATA 4096, little endian at byte 12
				c.Write(resp)
			}
			io.CopyN(io.Discard, c, 64)
		}, "1m", exit.Unreachable, stepConnect},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						tc.answer(c)
					}()
				}
			}()
			doc, err := run1(t, "nvme://"+l.Addr().String()+"/nqn.2026-01.org.example:vol1", "--timeout", tc.timeout)
			if exit.CodeOf(err) != tc.code || exit.Hint(err) == "" {
				t.Errorf("code %d, hint %q: %v", exit.CodeOf(err), exit.Hint(err), err)
			}
			p := doc.Paths[0]
			if last := p.Steps[len(p.Steps)-1]; doc.OK || p.OK || last.OK || last.Name != tc.failed || p.Error.Code != int(tc.code) {
				t.Errorf("want %s failed: %+v", tc.failed, p)
			}
		})
	}
}

func TestInterrupted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		if c, err := l.Accept(); err == nil {
			cancel()
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	if _, err := runContext(t, ctx, "nvme://"+l.Addr().String()+"/nqn.2026-01.org.example:vol1"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func run1(t *testing.T, args ...string) (Probed, error) {
	return runContext(t, context.Background(), args...)
}

func runContext(t *testing.T, ctx context.Context, args ...string) (doc Probed, err error) {
	t.Helper()
	streams, out, _ := iostreams.Test(nil)
	f := factory.New(streams)
	root := t.TempDir()
	f.HostIDs = func() *hostid.Store { return &hostid.Store{Root: root, Dir: hostid.SystemDir} }
	if err := os.MkdirAll(root+hostid.SystemDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+hostid.SystemDir+"/hostnqn", []byte("nqn.2026-01.org.example:host1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := New(f)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	f.AddGlobalFlags(cmd)
	cmd.SetArgs(append(args, "--json"))
	err = cmd.ExecuteContext(ctx)
	if e := json.Unmarshal(out.Bytes(), &doc); e != nil {
		t.Fatalf("%v in %q (%v)", e, out, err)
	}
	return doc, err
}
