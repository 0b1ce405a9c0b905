package nvme

import (
	"fmt"
	"strings"
)

// Status is the status field of a completion without its phase bit: the status code type and the status code in
// bits 10:0 (SCT<<8 | SC), the command retry delay in 12:11, More in 13 and Do Not Retry in 14 (NVM Express Base 2.0,
// 3.3.3.2.1).
type Status uint16

const (
	statusCode Status = 0x07ff

	StatusCRD  Status = 0x1800 // Command Retry Delay: index of the CRDT to wait, 0 for none
	StatusMore Status = 0x2000 // more about this failure is in the error log
	StatusDNR  Status = 0x4000 // Do Not Retry
)

// Generic command status.
const (
	StatusSuccess                  Status = 0x000
	StatusInvalidOpcode            Status = 0x001
	StatusInvalidField             Status = 0x002
	StatusCommandIDConflict        Status = 0x003
	StatusDataTransferError        Status = 0x004
	StatusPowerLossAbort           Status = 0x005
	StatusInternalError            Status = 0x006
	StatusAbortRequested           Status = 0x007
	StatusAbortSQDeletion          Status = 0x008
	StatusAbortFailedFused         Status = 0x009
	StatusAbortMissingFused        Status = 0x00a
	StatusInvalidNamespace         Status = 0x00b
	StatusCommandSequenceError     Status = 0x00c
	StatusInvalidSGLSegment        Status = 0x00d
	StatusInvalidSGLCount          Status = 0x00e
	StatusDataSGLLengthInvalid     Status = 0x00f
	StatusMetadataSGLLengthInvalid Status = 0x010
	StatusSGLTypeInvalid           Status = 0x011
	StatusAtomicWriteUnitExceeded  Status = 0x014
	StatusOperationDenied          Status = 0x015
	StatusSGLOffsetInvalid         Status = 0x016
	StatusHostIDInconsistent       Status = 0x018
	StatusKeepAliveExpired         Status = 0x019
	StatusKeepAliveInvalid         Status = 0x01a
	StatusAbortPreempt             Status = 0x01b
	StatusSanitizeFailed           Status = 0x01c
	StatusSanitizeInProgress       Status = 0x01d
	StatusSGLGranularityInvalid    Status = 0x01e
	StatusNamespaceWriteProtected  Status = 0x020
	StatusCommandInterrupted       Status = 0x021
	StatusTransientTransportError  Status = 0x022
	StatusCommandProhibited        Status = 0x023
	StatusAdminMediaNotReady       Status = 0x024
	StatusInvalidIOCommandSet      Status = 0x02c
	StatusLBAOutOfRange            Status = 0x080
	StatusCapacityExceeded         Status = 0x081
	StatusNamespaceNotReady        Status = 0x082
	StatusReservationConflict      Status = 0x083
	StatusFormatInProgress         Status = 0x084
)

// Command specific status.
const (
	StatusInvalidQueueID           Status = 0x101
	StatusInvalidQueueSize         Status = 0x102
	StatusAbortLimitExceeded       Status = 0x103
	StatusAERLimitExceeded         Status = 0x105
	StatusInvalidFirmwareSlot      Status = 0x106
	StatusInvalidFirmwareImage     Status = 0x107
	StatusInvalidLogPage           Status = 0x109
	StatusInvalidFormat            Status = 0x10a
	StatusFeatureNotSaveable       Status = 0x10d
	StatusFeatureNotChangeable     Status = 0x10e
	StatusFeatureNotNamespace      Status = 0x10f
	StatusNamespaceAlreadyAttached Status = 0x118
	StatusNamespaceNotAttached     Status = 0x11a
	StatusInvalidControllerList    Status = 0x11c
)

// Command specific status whose meaning depends on the command set: 180h and up stand for one thing in an answer to
// Connect and for another in an answer to an I/O command. StatusError.Fabrics tells which.
const (
	StatusConnectIncompatibleFormat Status = 0x180
	StatusConnectControllerBusy     Status = 0x181
	StatusConnectInvalidParameters  Status = 0x182
	StatusConnectRestartDiscovery   Status = 0x183
	StatusConnectInvalidHost        Status = 0x184
	StatusInvalidQueueType          Status = 0x185
	StatusDiscoveryRestart          Status = 0x190
	StatusAuthRequired              Status = 0x191

	StatusConflictingAttributes    Status = 0x180
	StatusInvalidProtectionInfo    Status = 0x181
	StatusWriteToReadOnlyRange     Status = 0x182
	StatusCommandSizeLimitExceeded Status = 0x183
)

// Media and data integrity errors.
const (
	StatusWriteFault             Status = 0x280
	StatusUnrecoveredRead        Status = 0x281
	StatusGuardCheck             Status = 0x282
	StatusApplicationTagCheck    Status = 0x283
	StatusReferenceTagCheck      Status = 0x284
	StatusCompareFailure         Status = 0x285
	StatusAccessDenied           Status = 0x286
	StatusDeallocatedOrUnwritten Status = 0x287
)

// Path related status.
const (
	StatusInternalPathError   Status = 0x300
	StatusANAPersistentLoss   Status = 0x301
	StatusANAInaccessible     Status = 0x302
	StatusANATransition       Status = 0x303
	StatusControllerPathError Status = 0x360
	StatusHostPathError       Status = 0x370
	StatusHostAbortedCommand  Status = 0x371
)

// Code returns the status code type and status code, without the flags.
func (s Status) Code() Status { return s & statusCode }

// OK reports success. Flags do not matter.
func (s Status) OK() bool { return s&statusCode == 0 }

// DNR reports Do Not Retry: the same command will fail again.
func (s Status) DNR() bool { return s&StatusDNR != 0 }

// More reports that the error log says more.
func (s Status) More() bool { return s&StatusMore != 0 }

// RetryDelay returns the index, 1 to 3, of the command retry delay time (CRDT) to wait, or 0 for none.
func (s Status) RetryDelay() int { return int(s&StatusCRD) >> 11 }

// PathError reports a path related status: another path may do what this one could not.
func (s Status) PathError() bool { return s&0x0700 == 0x0300 }

// Name returns the specification's name of the status code. fabrics says that the status answers a Fabrics command.
func (s Status) Name(fabrics bool) string {
	if fabrics {
		if name := fabricsStatusName(s.Code()); name != "" {
			return name
		}
	} else if name := ioStatusName(s.Code()); name != "" {
		return name
	}
	return s.commonName()
}

// String returns the name, the code in hexadecimal and, if set, DNR: "Invalid Field in Command (002h, DNR)". A code
// that means two things has both names.
func (s Status) String() string {
	name := s.commonName()
	f, io := fabricsStatusName(s.Code()), ioStatusName(s.Code())
	switch {
	case f != "" && io != "":
		name = f + " or " + io
	case f != "":
		name = f
	}
	return s.format(name)
}

func (s Status) format(name string) string {
	flags := ""
	if s.DNR() {
		flags = ", DNR"
	}
	return fmt.Sprintf("%s (%03xh%s)", name, uint16(s.Code()), flags)
}

func fabricsStatusName(s Status) string {
	switch s {
	case StatusConnectIncompatibleFormat:
		return "Connect Incompatible Format"
	case StatusConnectControllerBusy:
		return "Connect Controller Busy"
	case StatusConnectInvalidParameters:
		return "Connect Invalid Parameters"
	case StatusConnectRestartDiscovery:
		return "Connect Restart Discovery"
	case StatusConnectInvalidHost:
		return "Connect Invalid Host"
	case StatusInvalidQueueType:
		return "Invalid Queue Type"
	case StatusDiscoveryRestart:
		return "Discover Restart"
	case StatusAuthRequired:
		return "Authentication Required"
	}
	return ""
}

func ioStatusName(s Status) string {
	switch s {
	case StatusConflictingAttributes:
		return "Conflicting Attributes"
	case StatusInvalidProtectionInfo:
		return "Invalid Protection Information"
	case StatusWriteToReadOnlyRange:
		return "Attempted Write to Read Only Range"
	case StatusCommandSizeLimitExceeded:
		return "Command Size Limit Exceeded"
	}
	return ""
}

func (s Status) commonName() string {
	switch s.Code() {
	case StatusSuccess:
		return "Successful Completion"
	case StatusInvalidOpcode:
		return "Invalid Command Opcode"
	case StatusInvalidField:
		return "Invalid Field in Command"
	case StatusCommandIDConflict:
		return "Command ID Conflict"
	case StatusDataTransferError:
		return "Data Transfer Error"
	case StatusPowerLossAbort:
		return "Commands Aborted due to Power Loss Notification"
	case StatusInternalError:
		return "Internal Error"
	case StatusAbortRequested:
		return "Command Abort Requested"
	case StatusAbortSQDeletion:
		return "Command Aborted due to SQ Deletion"
	case StatusAbortFailedFused:
		return "Command Aborted due to Failed Fused Command"
	case StatusAbortMissingFused:
		return "Command Aborted due to Missing Fused Command"
	case StatusInvalidNamespace:
		return "Invalid Namespace or Format"
	case StatusCommandSequenceError:
		return "Command Sequence Error"
	case StatusInvalidSGLSegment:
		return "Invalid SGL Segment Descriptor"
	case StatusInvalidSGLCount:
		return "Invalid Number of SGL Descriptors"
	case StatusDataSGLLengthInvalid:
		return "Data SGL Length Invalid"
	case StatusMetadataSGLLengthInvalid:
		return "Metadata SGL Length Invalid"
	case StatusSGLTypeInvalid:
		return "SGL Descriptor Type Invalid"
	case 0x012:
		return "Invalid Use of Controller Memory Buffer"
	case 0x013:
		return "PRP Offset Invalid"
	case StatusAtomicWriteUnitExceeded:
		return "Atomic Write Unit Exceeded"
	case StatusOperationDenied:
		return "Operation Denied"
	case StatusSGLOffsetInvalid:
		return "SGL Offset Invalid"
	case StatusHostIDInconsistent:
		return "Host Identifier Inconsistent Format"
	case StatusKeepAliveExpired:
		return "Keep Alive Timer Expired"
	case StatusKeepAliveInvalid:
		return "Keep Alive Timeout Invalid"
	case StatusAbortPreempt:
		return "Command Aborted due to Preempt and Abort"
	case StatusSanitizeFailed:
		return "Sanitize Failed"
	case StatusSanitizeInProgress:
		return "Sanitize In Progress"
	case StatusSGLGranularityInvalid:
		return "SGL Data Block Granularity Invalid"
	case 0x01f:
		return "Command Not Supported for Queue in CMB"
	case StatusNamespaceWriteProtected:
		return "Namespace is Write Protected"
	case StatusCommandInterrupted:
		return "Command Interrupted"
	case StatusTransientTransportError:
		return "Transient Transport Error"
	case StatusCommandProhibited:
		return "Command Prohibited by Command and Feature Lockdown"
	case StatusAdminMediaNotReady:
		return "Admin Command Media Not Ready"
	case StatusInvalidIOCommandSet, 0x12c:
		return "Invalid I/O Command Set"
	case StatusLBAOutOfRange:
		return "LBA Out of Range"
	case StatusCapacityExceeded:
		return "Capacity Exceeded"
	case StatusNamespaceNotReady:
		return "Namespace Not Ready"
	case StatusReservationConflict:
		return "Reservation Conflict"
	case StatusFormatInProgress:
		return "Format In Progress"
	case 0x100:
		return "Completion Queue Invalid"
	case StatusInvalidQueueID:
		return "Invalid Queue Identifier"
	case StatusInvalidQueueSize:
		return "Invalid Queue Size"
	case StatusAbortLimitExceeded:
		return "Abort Command Limit Exceeded"
	case StatusAERLimitExceeded:
		return "Asynchronous Event Request Limit Exceeded"
	case StatusInvalidFirmwareSlot:
		return "Invalid Firmware Slot"
	case StatusInvalidFirmwareImage:
		return "Invalid Firmware Image"
	case 0x108:
		return "Invalid Interrupt Vector"
	case StatusInvalidLogPage:
		return "Invalid Log Page"
	case StatusInvalidFormat:
		return "Invalid Format"
	case StatusFeatureNotSaveable:
		return "Feature Identifier Not Saveable"
	case StatusFeatureNotChangeable:
		return "Feature Not Changeable"
	case StatusFeatureNotNamespace:
		return "Feature Not Namespace Specific"
	case StatusNamespaceAlreadyAttached:
		return "Namespace Already Attached"
	case StatusNamespaceNotAttached:
		return "Namespace Not Attached"
	case StatusInvalidControllerList:
		return "Controller List Invalid"
	case StatusWriteFault:
		return "Write Fault"
	case StatusUnrecoveredRead:
		return "Unrecovered Read Error"
	case StatusGuardCheck:
		return "End-to-end Guard Check Error"
	case StatusApplicationTagCheck:
		return "End-to-end Application Tag Check Error"
	case StatusReferenceTagCheck:
		return "End-to-end Reference Tag Check Error"
	case StatusCompareFailure:
		return "Compare Failure"
	case StatusAccessDenied:
		return "Access Denied"
	case StatusDeallocatedOrUnwritten:
		return "Deallocated or Unwritten Logical Block"
	case StatusInternalPathError:
		return "Internal Path Error"
	case StatusANAPersistentLoss:
		return "Asymmetric Access Persistent Loss"
	case StatusANAInaccessible:
		return "Asymmetric Access Inaccessible"
	case StatusANATransition:
		return "Asymmetric Access Transition"
	case StatusControllerPathError:
		return "Controller Pathing Error"
	case StatusHostPathError:
		return "Host Pathing Error"
	case StatusHostAbortedCommand:
		return "Command Aborted By Host"
	}
	if s&0x0700 == 0x0700 {
		return "Vendor Specific"
	}
	return "Unknown Status"
}

// StatusError is a command that its controller completed with a status other than success.
type StatusError struct {
	Op      string // what was asked, for instance "connect" or "identify controller"
	Status  Status
	Result  uint64 // dwords 0 and 1 of the completion
	Fabrics bool   // Status answers a Fabrics command
}

// Error names the operation, the status and, for Connect Invalid Parameters, the parameter.
func (e *StatusError) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString(e.Op + ": ")
	}
	b.WriteString(e.Status.format(e.Status.Name(e.Fabrics)))
	if e.Fabrics && (e.Status.Code() == StatusConnectInvalidParameters || e.Status.Code() == StatusConnectInvalidHost) {
		if p := e.InvalidParameter(); p != "" {
			b.WriteString(": " + p)
		}
	}
	return b.String()
}

// InvalidParameter says which parameter a Connect Invalid Parameters status points at (IPO and IATTR in Result,
// NVMe over Fabrics 1.1, 3.3); "" if at none.
func (e *StatusError) InvalidParameter() string {
	ipo, iattr := uint16(e.Result), uint8(e.Result>>16)&1
	switch {
	case iattr == 0 && ipo == 42:
		return "queue ID"
	case iattr == 0 && ipo == 44:
		return "submission queue size"
	case iattr == 0 && ipo == 46:
		return "connect attributes"
	case iattr == 0 && ipo == 48:
		return "keep alive timeout"
	case iattr == 1 && ipo == 0:
		return "host identifier"
	case iattr == 1 && ipo == 16:
		return "controller ID"
	case iattr == 1 && ipo == 256:
		return "subsystem NQN"
	case iattr == 1 && ipo == 512:
		return "host NQN"
	case ipo == 0:
		return ""
	case iattr == 1:
		return fmt.Sprintf("byte %d of the connect data", ipo)
	}
	return fmt.Sprintf("byte %d of the command", ipo)
}
