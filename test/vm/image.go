//go:build linux

package vm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Kernels are the kernel series a guest can boot, newest first.
func Kernels() []string { return []string{"6.12", "6.1"} }

// rootPackages is what the guests' Debian holds beside its essential packages.
var rootPackages = []string{
	"udev", "kmod", "util-linux", "fdisk", "mount", "procps", "iproute2", "nvme-cli", "fio", "e2fsprogs", "xfsprogs",
	"nbd-client", "libnbd-bin", "dmsetup", "multipath-tools",
}

// unusedModules are parts of a kernel package that no guest can use; without them the root is half as big.
var unusedModules = []string{
	"sound", "drivers/gpu", "drivers/media", "drivers/net/wireless", "drivers/net/ethernet", "drivers/staging",
	"drivers/iio", "drivers/hid", "drivers/usb", "drivers/input", "drivers/hwmon", "drivers/platform", "drivers/bluetooth",
	"drivers/isdn", "drivers/comedi", "drivers/mtd", "drivers/thunderbolt", "drivers/accel",
	"drivers/ata", "drivers/watchdog", "drivers/i2c", "drivers/edac", "drivers/parport", "drivers/crypto", "arch/x86/kvm", "net/bluetooth", "net/mac80211",
}

// bootModules are loaded by the initramfs, their dependencies before them.
var bootModules = []string{"virtio_pci", "virtio_blk", "virtio_console", "ext4", "9pnet_virtio", "9p", "nvme"}

// recipe changes whenever a cached image made by an older version of this code must not be used.
const recipe = "1"

// kernel is one unpacked kernel in the cache.
type kernel struct {
	Series, Version string
	Dir             string // the package's files: boot/vmlinuz-VERSION, lib/modules/VERSION
}

func (k kernel) vmlinuz() string { return filepath.Join(k.Dir, "boot", "vmlinuz-"+k.Version) }
func (k kernel) modules() string { return filepath.Join(k.Dir, "lib", "modules", k.Version) }

// image is everything that guests of any kernel are booted from.
type image struct {
	Root    string // ext4, holds the modules of every kernel
	Kernels map[string]kernel
}

// CacheDir is where kernels, packages and the guests' root are kept between runs.
func CacheDir() (string, error) {
	if dir := os.Getenv("HAWSER_VM_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder for the VM cache: %w; set HAWSER_VM_CACHE", err)
	}
	return filepath.Join(base, "hawser-vm"), nil
}

// openImage returns the image, making what the cache lacks. Whoever makes it holds a lock on the cache.
func openImage(ctx context.Context, log *slog.Logger) (*image, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(recipe + strings.Join(slices.Concat(Kernels(), rootPackages, unusedModules), " ")))
	dir := filepath.Join(cache, fmt.Sprintf("%x", sum[:6]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()

	img := &image{Root: filepath.Join(dir, "root.ext4"), Kernels: make(map[string]kernel)}
	var source *apt
	for _, series := range Kernels() {
		k, err := findKernel(dir, series)
		if errors.Is(err, fs.ErrNotExist) {
			if source == nil {
				log.Info("fetching package lists")
				if source, err = newApt(ctx, filepath.Join(cache, "apt")); err != nil {
					return nil, err
				}
			}
			k, err = fetchKernel(ctx, log, source, dir, series)
		}
		if err != nil {
			return nil, err
		}
		img.Kernels[series] = k
	}
	if _, err := os.Stat(img.Root); errors.Is(err, fs.ErrNotExist) {
		if source == nil {
			if source, err = newApt(ctx, filepath.Join(cache, "apt")); err != nil {
				return nil, err
			}
		}
		if err := buildRoot(ctx, log, source, img, dir); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	return img, nil
}

func findKernel(dir, series string) (kernel, error) {
	k := kernel{Series: series, Dir: filepath.Join(dir, "linux-"+series)}
	entries, err := os.ReadDir(filepath.Join(k.Dir, "lib", "modules"))
	if err != nil {
		return k, err
	}
	if len(entries) != 1 {
		return k, fmt.Errorf("%s holds %d kernels: remove it and run again", k.Dir, len(entries))
	}
	k.Version = entries[0].Name()
	return k, nil
}

func fetchKernel(ctx context.Context, log *slog.Logger, source *apt, dir, series string) (kernel, error) {
	pkg, err := source.kernelPackage(ctx, series)
	if err != nil {
		return kernel{}, err
	}
	log.Info("fetching kernel", "package", pkg)
	work, err := os.MkdirTemp(dir, "kernel")
	if err != nil {
		return kernel{}, err
	}
	defer os.RemoveAll(work)
	if _, err := source.run(ctx, work, "apt-get", "download", "-q", pkg); err != nil {
		return kernel{}, err
	}
	debs, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(debs) != 1 {
		return kernel{}, fmt.Errorf("apt-get download %s: %d packages arrived", pkg, len(debs))
	}
	tree := filepath.Join(work, "tree")
	if _, err := output(ctx, work, "dpkg", "-x", debs[0], tree); err != nil {
		return kernel{}, err
	}
	version := strings.TrimPrefix(pkg, "linux-image-")
	// Debian 13 packages ship their modules below /usr.
	if err := os.MkdirAll(filepath.Join(tree, "lib"), 0o755); err != nil {
		return kernel{}, err
	}
	if _, err := os.Stat(filepath.Join(tree, "usr/lib/modules")); err == nil {
		if err := os.Rename(filepath.Join(tree, "usr/lib/modules"), filepath.Join(tree, "lib/modules")); err != nil {
			return kernel{}, err
		}
	}
	for _, unused := range unusedModules {
		if err := os.RemoveAll(filepath.Join(tree, "lib/modules", version, "kernel", unused)); err != nil {
			return kernel{}, err
		}
	}
	if _, err := output(ctx, work, "depmod", "-b", tree, version); err != nil {
		return kernel{}, err
	}
	k := kernel{Series: series, Version: version, Dir: filepath.Join(dir, "linux-"+series)}
	return k, os.Rename(tree, k.Dir)
}

// buildRoot makes the guests' root file system: Debian with rootPackages and the modules of every kernel.
func buildRoot(ctx context.Context, log *slog.Logger, source *apt, img *image, dir string) error {
	log.Info("building the guests' root", "release", rootRelease, "mirror", source.mirror)
	work, err := os.MkdirTemp(dir, "root")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	// mmdebstrap lets an unprivileged _apt user traverse the folder.
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	tree := filepath.Join(work, "tree")
	if _, err := output(ctx, work, "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--format=directory",
		"--include="+strings.Join(rootPackages, ","), `--aptopt=Acquire::Languages "none"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/man/*",
		rootRelease, tree, source.source(rootRelease)); err != nil {
		return err
	}
	for _, d := range []string{"hawser", "usr/lib/modules"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			return err
		}
	}
	for _, k := range img.Kernels {
		if _, err := output(ctx, work, "cp", "-a", k.modules(), filepath.Join(tree, "usr/lib/modules/")); err != nil {
			return err
		}
	}
	part := img.Root + ".part"
	_ = os.Remove(part)
	if _, err := output(ctx, work, "mke2fs", "-q", "-t", "ext4", "-d", tree, "-L", "hawser-guest", part, "4G"); err != nil {
		return err
	}
	return os.Rename(part, img.Root)
}

// lock takes an exclusive lock on a file, waiting for another process to let go of it.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
