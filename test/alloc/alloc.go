// Package alloc counts the allocations of a run, for tests that show a path to be free of them.
package alloc

import "runtime"

// rounds is how often Count runs what it is given.
const rounds = 5

// Count returns the least number of allocations that one of several calls of run made, in this process as a whole.
//
// The least and not the mean: a keep-alive, a stalled socket's goroutine or the collector's own caches allocate beside a run now and
// then, more often on a slow machine, while what a command allocates is in every round.
func Count(run func()) uint64 {
	least := ^uint64(0)
	for range rounds {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		run()
		runtime.ReadMemStats(&after)
		least = min(least, after.Mallocs-before.Mallocs)
	}
	return least
}
