package nvmetest_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/nvmetest"
	"hawser.dev/hawser/nvme/wire"
)

// These tables break the rules of PDUs that docs/conformance.md has no case for, each on a connection of its own.

func TestHostBrokenRules(t *testing.T) {
	le := binary.LittleEndian
	type queue = nvmetest.Queue
	type command = nvmetest.Command
	header := func(q *queue, c *command, edit func(b []byte)) {
		b := q.C2HData(c, 0, make([]byte, ioSize), wire.FlagLast)
		edit(b)
		q.Raw(q.Resum(b))
	}
	for name, c := range map[string]struct {
		op     uint8
		fes    uint16
		fei    uint32
		digest bool
		script func(q *queue, c *command)
	}{
		"unknown type":    {wire.OpRead, 1, 0, false, func(q *queue, c *command) { header(q, c, func(b []byte) { b[0] = 8 }) }},
		"host's type":     {wire.OpRead, 1, 0, false, func(q *queue, c *command) { q.Raw(q.Frame(wire.TypeCapsuleCmd, 0, c.AppendTo(nil), nil)) }},
		"second ICResp":   {wire.OpRead, 2, 0, false, func(q *queue, _ *command) { q.SendICResp(wire.ICResp{MaxH2CData: 4096}) }},
		"HLEN":            {wire.OpRead, 1, 2, false, func(q *queue, c *command) { header(q, c, func(b []byte) { b[2] = 23 }) }},
		"PDO in header":   {wire.OpRead, 1, 3, false, func(q *queue, c *command) { header(q, c, func(b []byte) { b[3] = 16 }) }},
		"PDO not aligned": {wire.OpRead, 1, 3, false, func(q *queue, c *command) { header(q, c, func(b []byte) { b[3] = 26 }) }},
		"PLEN 7":          {wire.OpRead, 1, 4, false, func(q *queue, c *command) { header(q, c, func(b []byte) { le.PutUint32(b[4:], 7) }) }},
		"PLEN and DATAL":  {wire.OpRead, 1, 16, false, func(q *queue, c *command) { header(q, c, func(b []byte) { le.PutUint32(b[16:], 512) }) }},
		"PLEN 4 GiB":      {wire.OpRead, 1, 16, false, func(q *queue, c *command) { header(q, c, func(b []byte) { le.PutUint32(b[4:], 1<<32-1) }) }},
		"DATAL 4 GiB":     {wire.OpRead, 1, 16, false, func(q *queue, c *command) { header(q, c, func(b []byte) { le.PutUint32(b[16:], 1<<32-1) }) }},
		"digest unasked":  {wire.OpRead, 1, 1, false, func(q *queue, c *command) { header(q, c, func(b []byte) { b[1] |= wire.FlagHDGST }) }},
		"no data digest":  {wire.OpRead, 1, 1, true, func(q *queue, c *command) { header(q, c, func(b []byte) { b[1] &^= wire.FlagDDGST }) }},
		"header digest":   {wire.OpRead, 3, 0, true, func(q *queue, c *command) { b := q.C2HData(c, 0, make([]byte, ioSize), 0); b[9] ^= 1; q.Raw(b) }},
		"other command":   {wire.OpRead, 2, 0, false, func(q *queue, c *command) { c.CID ^= 1; q.Raw(q.C2HData(c, 0, make([]byte, 512), 0)) }},
		"old generation":  {wire.OpRead, 2, 0, false, func(q *queue, c *command) { c.CID ^= 0x8000; q.Raw(q.C2HData(c, 0, make([]byte, 512), 0)) }},
		"gap in a read":   {wire.OpRead, 4, 0, false, func(q *queue, c *command) { q.Raw(q.C2HData(c, 512, make([]byte, 512), 0)) }},
		"read twice":      {wire.OpRead, 4, 0, false, func(q *queue, c *command) { b := q.C2HData(c, 0, make([]byte, 512), 0); q.Raw(append(b, b...)) }},
		"data after LAST": {wire.OpRead, 2, 0, false, func(q *queue, c *command) {
			q.Raw(append(q.C2HData(c, 0, make([]byte, 512), wire.FlagLast), q.C2HData(c, 512, make([]byte, 512), 0)...))
		}},
		"R2T for a read":   {wire.OpRead, 2, 0, false, func(q *queue, c *command) { b, _ := q.R2T(c, 0, ioSize); q.Raw(b) }},
		"data for a write": {wire.OpWrite, 2, 0, false, func(q *queue, c *command) { q.Raw(q.C2HData(c, 0, make([]byte, ioSize), wire.FlagLast)) }},
		"write unfetched":  {wire.OpWrite, 2, 0, false, func(q *queue, c *command) { q.Respond(c, nvme.StatusSuccess, 0) }},
		"answer twice": {wire.OpWrite, 2, 0, false, func(q *queue, c *command) {
			q.Respond(c, nvme.StatusInternalError|nvme.StatusDNR, 0)
			q.Respond(c, nvme.StatusSuccess, 0)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			ctrl := nvmetest.NewController(t, testNQN)
			onIO(ctrl, c.op, func(q *queue, cmd *command) {
				c.script(q, cmd)
				q.Drain()
			})
			o := oneQueue
			o.HeaderDigest, o.DataDigest = c.digest, c.digest
			ctl, ns := openNamespace(t, ctrl, o)
			back := make(chan error, 4)
			io := &host.IO{Op: host.OpRead, Data: make([]byte, ioSize), Length: ioSize, Done: func(io *host.IO) { back <- io.Err }}
			if c.op == wire.OpWrite {
				io.Op = host.OpWrite
			}
			ns.Submit(io)
			if err := <-back; err == nil {
				t.Error("the command succeeded")
			}
			ended(t, ctrl, ctl, c.fes, c.fei)
			if len(back) != 0 {
				t.Error("the command came back twice")
			}
		})
	}
}

func TestTargetBrokenRules(t *testing.T) {
	le := binary.LittleEndian
	type host = nvmetest.Host
	flush := func(q *host, edit func(b []byte)) []byte {
		b, _ := q.Capsule(wire.FlushCmd(1), nil)
		edit(b)
		return q.Resum(b)
	}
	inCapsule := func(q *host, edit func(b []byte)) []byte {
		b, _ := q.Capsule(wire.WriteCmd(1, 0, 8, 0), make([]byte, 4096))
		edit(b)
		return q.Resum(b)
	}
	for name, c := range map[string]struct {
		fes    uint16
		fei    uint32
		digest uint8
		pdu    func(q *host) []byte
	}{
		"unknown type":      {1, 0, 0, func(q *host) []byte { return flush(q, func(b []byte) { b[0] = 0x0a }) }},
		"controller's type": {1, 0, 0, func(q *host) []byte { return q.Frame(wire.TypeR2T, 0, (&wire.R2T{Length: 4}).AppendTo(nil), nil) }},
		"HLEN":              {1, 2, 0, func(q *host) []byte { return flush(q, func(b []byte) { b[2] = 24 }) }},
		"PLEN shorter":      {1, 4, 0, func(q *host) []byte { return flush(q, func(b []byte) { b[4] = 71 }) }},
		"PLEN 4 GiB":        {1, 4, 0, func(q *host) []byte { return inCapsule(q, func(b []byte) { le.PutUint32(b[4:], 1<<32-1) }) }},
		"PDO in header":     {1, 3, 0, func(q *host) []byte { return inCapsule(q, func(b []byte) { b[3] = 71 }) }},
		"PDO in digest":     {1, 3, wire.DigestHeader, func(q *host) []byte { return inCapsule(q, func(b []byte) { b[3] = 72 }) }},
		"PDO not aligned":   {1, 3, 0, func(q *host) []byte { return inCapsule(q, func(b []byte) { b[3] = 73 }) }},
		"digest unasked":    {1, 1, 0, func(q *host) []byte { return flush(q, func(b []byte) { b[1] |= wire.FlagHDGST }) }},
		"no data digest":    {1, 1, wire.DigestData, func(q *host) []byte { return inCapsule(q, func(b []byte) { b[1] = 0 }) }},
		"header digest":     {3, 0, wire.DigestHeader, func(q *host) []byte { b := flush(q, func([]byte) {}); b[20] ^= 1; return b }},
		"SGL beyond PDU":    {1, 4, 0, func(q *host) []byte { return inCapsule(q, func(b []byte) { le.PutUint32(b[8+32:], 8192) }) }},
		"SGL says no data":  {1, 4, 0, func(q *host) []byte { return inCapsule(q, func(b []byte) { b[8+39] = wire.SGLTransport }) }},
		"H2CData unasked":   {1, 10, 0, func(q *host) []byte { return h2c(q, wire.DataPDU{Length: 512}, 512, wire.FlagLast) }},
		"H2CData empty":     {1, 10, 0, func(q *host) []byte { return q.Frame(wire.TypeH2CData, 0, (&wire.DataPDU{}).AppendTo(nil), nil) }},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			bystander(t, s)
			_, q := withIO(t, s, nvmetest.HostOptions{IC: wire.ICReq{Digest: c.digest}})
			b := c.pdu(q)
			q.Raw(b)
			q.ExpectTermReq(c.fes, c.fei, b)
		})
	}
	t.Run("MAXH2CDATA", func(t *testing.T) {
		s := serve(t)
		bystander(t, s)
		_, q := withIO(t, s, nvmetest.HostOptions{})
		b := q.Frame(wire.TypeH2CData, 0, (&wire.DataPDU{Length: q.ICResp.MaxH2CData + 4096}).AppendTo(nil), make([]byte, q.ICResp.MaxH2CData+4096))
		q.Raw(b[:wire.HLenData]) // nobody waits for the rest
		q.ExpectTermReq(wire.FESLimitExceeded, 0, b)
	})
}

// A command identifier that is in use is refused, and the command that has it is not hurt.
func TestTargetDuplicateCID(t *testing.T) {
	s := serve(t)
	_, q := withIO(t, s, nvmetest.HostOptions{})
	cid, r := write(q, 4096)
	cmd := wire.FlushCmd(1)
	cmd.CID = cid
	q.Raw(q.Frame(wire.TypeCapsuleCmd, 0, cmd.AppendTo(nil), nil))
	q.ExpectStatus(cid, nvme.StatusCommandIDConflict)
	want := pattern(4096, 6)
	q.AnswerR2T(r, want, 0)
	q.ExpectStatus(cid, nvme.StatusSuccess)
	if _, got := q.Must(wire.ReadCmd(1, 0, 8, 0), nil, 4096); !bytes.Equal(got, want) {
		t.Error("data differs")
	}
}
