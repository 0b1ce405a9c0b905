package backend

import (
	"os"

	"golang.org/x/sys/unix"
)

func physicalMemory() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return int64(si.Totalram) * int64(si.Unit)
}

func mapMemory(size int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
}

func unmapMemory(mem []byte) error { return unix.Munmap(mem) }

// zeroMemory makes mem[from:to] zero. Whole pages go back to the system if free says so, or if they are many.
func zeroMemory(mem []byte, from, to int, free bool) error {
	page := os.Getpagesize()
	first := (from + page - 1) &^ (page - 1)
	last := to &^ (page - 1)
	const many = 64 << 10 // fewer are cleared faster than they are faulted in again
	if last <= first || !free && last-first < many {
		clear(mem[from:to])
		return nil
	}
	clear(mem[from:first])
	clear(mem[last:to])
	return unix.Madvise(mem[first:last], unix.MADV_DONTNEED)
}
