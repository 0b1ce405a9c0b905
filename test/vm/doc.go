// Package vm boots Debian kernels under qemu and runs a package of tests inside the guest, where the kernel's own
// NVMe/TCP host and target, nvme-cli, fio, mkfs and udev are at hand.
//
// A case is an ordinary Go test function behind the build tag vm, in a package whose TestMain is
//
//	func TestMain(m *testing.M) { os.Exit(vm.Main(m)) }
//
// Outside, Main boots one guest for each kernel, with the test binary itself in it; inside, it runs the tests. So
//
//	CGO_ENABLED=0 go test -tags vm -v ./test/vm/cases -run TestConnect -kernel 6.12
//
// builds what is missing, boots, and prints the guest's results as TestConnect's under linux-6.12. Package guest holds
// what cases use.
//
// Kernels, packages and the guests' root are kept in $HAWSER_VM_CACHE, else in hawser-vm under the user's cache folder.
package vm
