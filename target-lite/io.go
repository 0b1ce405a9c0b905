package targetlite

import (
	"bytes"
	"errors"
	"log/slog"
	"syscall"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
	"hawser.dev/hawser/target-lite/backend"
)

// Bytes of a submission queue entry, for the error log.
const (
	locOpcode = 0
	locNSID   = 4
	locSGL    = 32
	locCDW10  = 40
	locCDW11  = 44
	locCDW12  = 48
)

// compareAt is where, behind n bytes from the host, those from the backend go: page-aligned.
func compareAt(n int) int { return (n + pageSize - 1) &^ (pageSize - 1) }

// beginIO checks an I/O command.
func (c *conn) beginIO(t *task) (nvme.Status, uint16) {
	sqe := &t.cmd.SQE
	if !c.ctrl.live.Load() {
		return nvme.StatusCommandSequenceError | nvme.StatusDNR, locOpcode
	}
	table := c.ctrl.sub.namespaces.Load()
	switch sqe.Opcode {
	case wire.OpFlush:
		if sqe.NSID == wire.NSIDAll {
			return nvme.StatusSuccess, 0
		}
	case wire.OpRead, wire.OpWrite, wire.OpCompare, wire.OpWriteZeroes, wire.OpDSM:
	default:
		return nvme.StatusInvalidOpcode | nvme.StatusDNR, locOpcode
	}
	ns := table.get(sqe.NSID)
	if ns == nil {
		return nvme.StatusInvalidNamespace | nvme.StatusDNR, locNSID
	}
	t.ns = ns
	r := &t.req
	r.FUA, r.MayUnmap, r.Data, r.Err = false, false, nil, nil
	switch sqe.Opcode {
	case wire.OpFlush:
		r.Op, r.Offset, r.Length = backend.OpFlush, 0, 0
		return nvme.StatusSuccess, 0
	case wire.OpDSM:
		if t.cmd.DataLen < sqe.DSMRanges()*wire.DSMRangeSize { // Linux always sends room for all 256
			return nvme.StatusInvalidField | nvme.StatusDNR, locCDW10
		}
		if ns.info.ReadOnly && sqe.CDW11&wire.DSMDeallocate != 0 {
			return nvme.StatusNamespaceWriteProtected | nvme.StatusDNR, locNSID
		}
		return nvme.StatusSuccess, 0
	}
	slba, blocks := sqe.SLBA(), uint64(sqe.Blocks())
	if !ns.contains(slba, blocks) {
		return nvme.StatusLBAOutOfRange | nvme.StatusDNR, locCDW10
	}
	r.Offset, r.Length = int64(slba<<ns.shift), int64(blocks<<ns.shift)
	r.FUA = sqe.FUA() || c.ctrl.throughs.Load()
	switch sqe.Opcode {
	case wire.OpWriteZeroes:
		r.Op, r.MayUnmap = backend.OpWriteZeroes, sqe.DEAC()
	case wire.OpWrite:
		r.Op = backend.OpWrite
	default:
		r.Op = backend.OpRead
	}
	if sqe.Opcode != wire.OpWriteZeroes && int64(t.cmd.DataLen) != r.Length {
		return nvme.StatusDataSGLLengthInvalid | nvme.StatusDNR, locSGL
	}
	if r.Op != backend.OpRead && ns.info.ReadOnly {
		return nvme.StatusNamespaceWriteProtected | nvme.StatusDNR, locNSID
	}
	return nvme.StatusSuccess, 0
}

func (ns *namespace) contains(slba, blocks uint64) bool {
	return slba <= ns.blocks && blocks <= ns.blocks-slba
}

// executeIO runs a command that beginIO has accepted, with its data.
func (c *conn) executeIO(t *task) {
	switch t.cmd.SQE.Opcode {
	case wire.OpRead:
		k := c.count(t.ns)
		k.reads++
		k.readBytes += uint64(t.req.Length)
		t.withBuffer(t.cmd.DataLen, read)
	case wire.OpWrite:
		k := c.count(t.ns)
		k.writes++
		k.writeBytes += uint64(t.req.Length)
		t.req.Data = t.cmd.Data
		t.run(true)
	case wire.OpCompare:
		t.req.Data = t.buf[compareAt(t.cmd.DataLen):][:t.cmd.DataLen]
		t.run(true)
	case wire.OpFlush:
		if t.cmd.SQE.NSID == wire.NSIDAll && !t.nextFlush() {
			t.complete(nvme.StatusSuccess, 0)
			return
		}
		t.run(true)
	case wire.OpDSM:
		c.dsm(t)
	default:
		t.run(true)
	}
}

func read(t *task) {
	t.req.Data = t.buf
	t.run(false)
}

// run submits the request of t, and those that follow it, until one is on its way or the command is complete.
func (t *task) run(loop bool) {
	for {
		ns := t.ns
		if !ns.backend.Submit(&t.req) {
			if k := ns.kicker; k != nil && loop {
				t.conn.kickers = append(t.conn.kickers, k)
			} else if k != nil {
				k.Kick()
			}
			return
		}
		if !t.settle() {
			return
		}
	}
}

func requestDone(r *backend.Request) {
	if t := r.User.(*task); t.settle() {
		t.run(false)
	}
}

// settle looks at a finished request and completes the command, unless another request is to follow: then it is true.
func (t *task) settle() bool {
	r := &t.req
	if r.Err != nil {
		t.conn.backendError(t, r)
		return false
	}
	switch t.cmd.SQE.Opcode {
	case wire.OpRead:
		t.cmd.Data = t.buf
	case wire.OpCompare:
		if !bytes.Equal(r.Data, t.cmd.Data) {
			t.fail(nvme.StatusCompareFailure|nvme.StatusDNR, noLocation)
			return false
		}
	case wire.OpFlush:
		if t.cmd.SQE.NSID == wire.NSIDAll && t.nextFlush() {
			return true
		}
	case wire.OpDSM:
		if t.nextRange() {
			return true
		}
	}
	t.complete(nvme.StatusSuccess, 0)
	return false
}

// nextFlush prepares the flush of the next namespace with a volatile cache, of all.
func (t *task) nextFlush() bool {
	table := t.conn.ctrl.sub.namespaces.Load()
	for t.at < len(table.ids) {
		ns := table.get(table.ids[t.at])
		t.at++
		if ns.info.VolatileCache {
			t.ns = ns
			t.req.Op, t.req.Offset, t.req.Length, t.req.Data, t.req.Err = backend.OpFlush, 0, 0, nil, nil
			return true
		}
	}
	return false
}

// dsm checks all ranges of Dataset Management, then deallocates one after another; the other attributes are hints.
func (c *conn) dsm(t *task) {
	t.cmd.Data = t.cmd.Data[:t.cmd.SQE.DSMRanges()*wire.DSMRangeSize]
	for at := 0; at < len(t.cmd.Data); at += wire.DSMRangeSize {
		var r wire.DSMRange
		if r.Parse(t.cmd.Data[at:at+wire.DSMRangeSize]) != nil || !t.ns.contains(r.SLBA, uint64(r.Blocks)) {
			t.fail(nvme.StatusLBAOutOfRange|nvme.StatusDNR, noLocation)
			return
		}
	}
	if t.cmd.SQE.CDW11&wire.DSMDeallocate == 0 || !t.nextRange() {
		t.complete(nvme.StatusSuccess, 0)
		return
	}
	t.run(true)
}

func (t *task) nextRange() bool {
	for t.at < len(t.cmd.Data) {
		var r wire.DSMRange
		r.Parse(t.cmd.Data[t.at : t.at+wire.DSMRangeSize])
		t.at += wire.DSMRangeSize
		if r.Blocks > 0 {
			t.req.Op, t.req.Data = backend.OpDeallocate, nil
			t.req.Offset, t.req.Length = int64(r.SLBA<<t.ns.shift), int64(r.Blocks)<<t.ns.shift
			return true
		}
	}
	return false
}

func (c *conn) backendError(t *task, r *backend.Request) {
	t.ns.errors.Add(1)
	status := errnoStatus(r)
	t.ns.failures.log(c.srv.log, slog.LevelError, "backend failed", "namespace", t.ns.nsid, "subsystem", c.ctrl.sub.nqn, "backing", t.ns.spec,
		"operation", r.Op, "offset", r.Offset, "length", r.Length, "error", r.Err, "status", status)
	t.fail(status, noLocation)
}

// errnoStatus returns the status for a failed request. As in Linux, what a retry may mend has no DNR.
func errnoStatus(r *backend.Request) nvme.Status {
	if errors.Is(r.Err, backend.ErrShrunk) {
		return nvme.StatusLBAOutOfRange | nvme.StatusDNR
	}
	var errno syscall.Errno
	errors.As(r.Err, &errno)
	switch errno {
	case errnoTarget:
		return nvme.StatusLBAOutOfRange | nvme.StatusDNR
	case errnoReservation:
		return nvme.StatusReservationConflict | nvme.StatusDNR
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return nvme.StatusCapacityExceeded | nvme.StatusDNR
	case syscall.ENODEV, syscall.ENXIO, syscall.ESTALE:
		return nvme.StatusNamespaceNotReady | nvme.StatusDNR
	case syscall.EROFS, syscall.EPERM, syscall.EACCES:
		return nvme.StatusNamespaceWriteProtected | nvme.StatusDNR
	case syscall.EOPNOTSUPP:
		return nvme.StatusInvalidOpcode | nvme.StatusDNR
	case syscall.EINVAL:
		return nvme.StatusInvalidField | nvme.StatusDNR
	case syscall.EILSEQ:
		return nvme.StatusGuardCheck | nvme.StatusDNR
	case syscall.EIO, errnoMedium, syscall.ETIMEDOUT:
		if r.Op == backend.OpRead {
			return nvme.StatusUnrecoveredRead
		}
		return nvme.StatusWriteFault
	}
	return nvme.StatusInternalError
}
