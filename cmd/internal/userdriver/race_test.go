//go:build race

package userdriver

const raceEnabled = true
