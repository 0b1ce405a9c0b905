package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"hawser.dev/hawser/attach/frontend/frontendtest"
)

func TestClient(t *testing.T) {
	e := serve(t, "unix", frontendtest.NewVolume(t, testInfo(1<<20)), Options{})
	c, err := Dial(t.Context(), e.addr.String(), "")
	if err != nil {
		t.Fatal(err)
	}
	if c.Size() != 1<<20 || c.BlockSize() != 512 {
		t.Errorf("size %d, block size %d", c.Size(), c.BlockSize())
	}
	want := bytes.Repeat([]byte("hawser!\n"), 64)
	if err := c.WriteAt(t.Context(), want, 4096); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1024)
	if err := c.ReadAt(t.Context(), got, 3584); err != nil || !bytes.Equal(got[512:], want) {
		t.Errorf("read: %v, %q", err, got)
	}
	// An error is an answer: the session goes on.
	if err := c.ReadAt(t.Context(), got, 1<<20); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("read behind the end: %v", err)
	}
	if err := c.ReadAt(t.Context(), got, 0); err != nil {
		t.Errorf("read after an error: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Flush(t.Context()); err == nil {
		t.Error("used after Close")
	}
}

func TestDialRefused(t *testing.T) {
	e := serve(t, "unix", frontendtest.NewVolume(t, testInfo(1<<20)), Options{})
	if _, err := Dial(t.Context(), e.addr.String(), "no such export"); err == nil {
		t.Error("an export that is not there was opened")
	}
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "s"), ""); err == nil {
		t.Error("nobody listens there")
	}
}

// TestDialHostile has every strict prefix, and some lies, for a server.
func TestDialHostile(t *testing.T) {
	greeting := binary.BigEndian.AppendUint64(nil, magicInit)
	greeting = binary.BigEndian.AppendUint64(greeting, magicOption)
	greeting = append(greeting, 0, 3)
	with := func(replies ...[]byte) []byte { return append(bytes.Clone(greeting), bytes.Join(replies, nil)...) }
	reply := func(t repType, b ...byte) []byte {
		return append(optReply{optGo, t, uint32(len(b))}.AppendTo(nil), b...)
	}
	cases := map[string][]byte{
		"ack without a size": with(reply(repAck)),
		"negative size":      with(reply(repInfo, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0), reply(repAck)),
		"block size of 3":    with(reply(repInfo, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3), reply(repAck)),
		"reply of 4 GiB":     with(optReply{optGo, repInfo, 0xffffffff}.AppendTo(nil)),
		"another option":     with(optReply{optList, repAck, 0}.AppendTo(nil)),
		"http":               []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
	}
	whole := with(reply(repInfo, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 1), reply(repAck))
	for n := range whole {
		cases["prefix of "+string(rune('0'+n/10))+string(rune('0'+n%10))] = whole[:n]
	}
	for name, b := range cases {
		ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if nc, err := ln.Accept(); err == nil {
				nc.Write(b)
				nc.Close()
			}
		}()
		if c, err := Dial(t.Context(), ln.Addr().String(), ""); err == nil {
			t.Errorf("%s: accepted", name)
			c.Close()
		}
		ln.Close()
	}
}

func TestDialEndsWithContext(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if nc, err := ln.Accept(); err == nil {
			cancel()
			<-t.Context().Done()
			nc.Close()
		}
	}()
	if _, err := Dial(ctx, ln.Addr().String(), ""); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
