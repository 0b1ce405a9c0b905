package backend

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// machineID names this machine without telling its machine-id (machine-id(5) wants it kept).
func machineID(root string) string {
	id := ""
	for _, p := range []string{"etc/machine-id", "var/lib/dbus/machine-id"} {
		if id = readAttr(root, p); id != "" {
			break
		}
	}
	if id == "" {
		id, _ = os.Hostname()
	}
	sum := sha256.Sum256([]byte("hawser machine\x00" + id))
	return hex.EncodeToString(sum[:8])
}

// readAttr returns a sysfs-like file's text without the white space around it, "" if it can't be read.
func readAttr(elem ...string) string {
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func pathIdentity(root, path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return "path:" + machineID(root) + ":" + path
}

func fileIdentity(root, path string, fd int, st *unix.Stat_t) string {
	var sx unix.Statx_t
	uuid := fsUUID(root, fd, st)
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &sx)
	if uuid == "" || err != nil || sx.Mask&unix.STATX_BTIME == 0 {
		return pathIdentity(root, path)
	}
	return fmt.Sprintf("file:%s:%d:%d.%09d", uuid, st.Ino, sx.Btime.Sec, sx.Btime.Nsec)
}

// fsUUID returns the UUID of the file system fd is on, "" where it has none, or where inode numbers do not name a
// file for good: network, stacked and volatile file systems, and btrfs, whose snapshots repeat them.
func fsUUID(root string, fd int, st *unix.Stat_t) string {
	var sfs unix.Statfs_t
	if unix.Fstatfs(fd, &sfs) != nil {
		return ""
	}
	switch int64(sfs.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC:
	default:
		return ""
	}
	// FS_IOC_GETFSUUID (linux/fs.h, 6.9)
	var u2 struct {
		n    uint8
		uuid [16]byte
	}
	if ioctl(fd, 0x80111500, unsafe.Pointer(&u2)) == nil && u2.n == 16 {
		return hex.EncodeToString(u2.uuid[:])
	}
	// EXT4_IOC_GETFSUUID (fs/ext4/ext4.h, 5.18)
	e4 := struct {
		n, flags uint32
		uuid     [16]byte
	}{n: 16}
	if ioctl(fd, 0x8008662c, unsafe.Pointer(&e4)) == nil && e4.n == 16 {
		return hex.EncodeToString(e4.uuid[:])
	}
	if link := deviceLink(root, "by-uuid", uint64(st.Dev)); link != "" {
		return strings.ToLower(strings.ReplaceAll(link, "-", ""))
	}
	return ""
}

// deviceLink returns the best name in /dev/disk/KIND for a device number.
func deviceLink(root, kind string, rdev uint64) string {
	dir := filepath.Join(root, "dev/disk", kind)
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, e.Name()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && uint64(st.Rdev) == rdev {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return ""
	}
	// World wide names before those made of model and serial number.
	return slices.MinFunc(names, func(a, b string) int {
		if d := linkRank(a) - linkRank(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
}

func linkRank(name string) int {
	for i, p := range []string{"wwn-", "nvme-uuid.", "nvme-eui.", "nvme-nvme.", "dm-uuid-", "md-uuid-", "scsi-", "nvme-", "ata-", "virtio-"} {
		if strings.HasPrefix(name, p) {
			return i
		}
	}
	return 100
}

func sysDevice(root string, rdev uint64) string {
	return filepath.Join(root, "sys/dev/block", fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev)))
}

// deviceDir is sysDevice with its link resolved: the whole disk of a partition is its parent then.
func deviceDir(root string, rdev uint64) string {
	dir := sysDevice(root, rdev)
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real
	}
	return dir
}

func blockIdentity(root, path string, rdev uint64) string {
	dir := deviceDir(root, rdev)
	if id := deviceIdentity(root, dir, rdev); id != "" {
		return id
	}
	if part := readAttr(dir, "partition"); part != "" {
		if link := deviceLink(root, "by-partuuid", rdev); link != "" {
			return "partuuid:" + link
		}
		if id := deviceIdentity(root, filepath.Dir(dir), 0); id != "" {
			return id + "-part" + part
		}
	}
	return pathIdentity(root, path)
}

func deviceIdentity(root, dir string, rdev uint64) string {
	if backing := readAttr(dir, "loop/backing_file"); backing != "" {
		if f, err := os.Open(backing); err == nil {
			defer f.Close()
			var st unix.Stat_t
			if unix.Fstat(int(f.Fd()), &st) == nil {
				return "loop:" + readAttr(dir, "loop/offset") + ":" + fileIdentity(root, backing, int(f.Fd()), &st)
			}
		}
	}
	for _, a := range [...]struct{ kind, attr string }{
		{"dm", "dm/uuid"}, {"md", "md/uuid"}, {"wwid", "wwid"}, {"wwid", "device/wwid"}, {"serial", "serial"}, {"serial", "device/serial"},
	} {
		if v := readAttr(dir, a.attr); v != "" {
			return a.kind + ":" + strings.Join(strings.Fields(v), " ")
		}
	}
	if rdev != 0 {
		if link := deviceLink(root, "by-id", rdev); link != "" {
			return "id:" + link
		}
	}
	return ""
}

// fileHeld says who holds a file beside the processes that lock it, "" if nobody: loop devices and swap.
func fileHeld(root string, st *unix.Stat_t) string {
	loops, _ := filepath.Glob(filepath.Join(root, "sys/block/loop*/loop/backing_file"))
	for _, l := range loops {
		if sameFile(readAttr(l), st) {
			return "it is attached to /dev/" + filepath.Base(filepath.Dir(filepath.Dir(l))) + "; losetup -d that, or export the loop device"
		}
	}
	for _, s := range swaps(root) {
		if sameFile(s, st) {
			return "it is used as swap; swapoff " + s + " first"
		}
	}
	return ""
}

func sameFile(path string, st *unix.Stat_t) bool {
	var o unix.Stat_t
	return path != "" && unix.Stat(path, &o) == nil && o.Dev == st.Dev && o.Ino == st.Ino
}

// blockHeld says who holds a block device or a partition of it, "" if nothing is known.
func blockHeld(root string, rdev uint64) string {
	dir := deviceDir(root, rdev)
	dirs := []string{dir}
	if parts, _ := filepath.Glob(filepath.Join(dir, "*/partition")); parts != nil {
		for _, p := range parts {
			dirs = append(dirs, filepath.Dir(p))
		}
	}
	var why []string
	for _, d := range dirs {
		name := filepath.Base(d)
		if holders, _ := os.ReadDir(filepath.Join(d, "holders")); len(holders) > 0 {
			var names []string
			for _, h := range holders {
				names = append(names, h.Name())
			}
			why = append(why, name+" is held by "+strings.Join(names, ", "))
		}
		var maj, min uint32
		if n, _ := fmt.Sscanf(readAttr(d, "dev"), "%d:%d", &maj, &min); n == 2 {
			dev := unix.Mkdev(maj, min)
			if m := mountPoint(root, dev); m != "" {
				why = append(why, name+" is mounted on "+m)
			}
			for _, s := range swaps(root) {
				var st unix.Stat_t
				if unix.Stat(s, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && uint64(st.Rdev) == dev {
					why = append(why, name+" is used as swap")
				}
			}
		}
	}
	return strings.Join(why, "; ")
}

// mountPoint returns where a device is mounted in this mount namespace.
func mountPoint(root string, dev uint64) string {
	f, err := os.Open(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return ""
	}
	defer f.Close()
	want := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 7 {
			continue
		}
		if fields[2] == want {
			return unescapeMount(fields[4])
		}
		// btrfs and others mount under a number of their own: the source says.
		if i := slices.Index(fields, "-"); i > 0 && i+2 < len(fields) && strings.HasPrefix(fields[i+2], "/dev/") {
			var st unix.Stat_t
			if unix.Stat(unescapeMount(fields[i+2]), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && uint64(st.Rdev) == dev {
				return unescapeMount(fields[4])
			}
		}
	}
	return ""
}

// unescapeMount undoes the octal escapes of proc_pid_mountinfo(5).
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

func swaps(root string) []string {
	var out []string
	for i, line := range strings.Split(readAttr(root, "proc/swaps"), "\n") {
		if fields := strings.Fields(line); i > 0 && len(fields) > 0 {
			out = append(out, unescapeMount(fields[0]))
		}
	}
	return out
}

func ioctl(fd int, req uintptr, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg)); e != 0 {
		return e
	}
	return nil
}
