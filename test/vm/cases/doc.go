// Package cases holds the tests that run inside the guests of package vm. They are behind the build tag vm.
package cases
