package nvmetest_test

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// requiredCases are the cases that docs/conformance.md must have.
func requiredCases() map[string]bool {
	cases := map[string]bool{}
	add := func(prefix string, n int, except ...string) {
		for i := 1; i <= n; i++ {
			cases[prefix+string(rune('0'+i/10))+string(rune('0'+i%10))] = true
		}
		for _, e := range except {
			delete(cases, e)
		}
	}
	add("N", 38, "N25", "N31", "N37", "N38")
	add("D", 8, "D06", "D07")
	add("F", 15, "F11", "F13")
	return cases
}

// testFuncs returns the names of the tests of the package in dir, a folder of this module.
func testFuncs(t *testing.T, dir string) map[string]bool {
	files, err := filepath.Glob(filepath.Join("../..", dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				names[fn.Name.Name] = true
			}
		}
	}
	return names
}

// TestDocs checks docs/conformance.md: each required case has a row, each row names tests, each test exists, and each
// test named after a case is in that case's row.
func TestDocs(t *testing.T) {
	file, err := os.Open("../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	row := regexp.MustCompile(`^\| ([A-Z]\d\d) \|`)
	named := regexp.MustCompile("`([a-z/-]+)\\.(Test\\w+)`")
	packages := map[string]map[string]bool{}
	missing := requiredCases()
	listed := map[string]string{}
	for sc := bufio.NewScanner(file); sc.Scan(); {
		m := row.FindStringSubmatch(sc.Text())
		if m == nil {
			continue
		}
		delete(missing, m[1])
		tests := named.FindAllStringSubmatch(sc.Text(), -1)
		if len(tests) == 0 {
			t.Errorf("%s names no test", m[1])
		}
		for _, n := range tests {
			dir, name := n[1], n[2]
			if packages[dir] == nil {
				packages[dir] = testFuncs(t, dir)
			}
			if !packages[dir][name] {
				t.Errorf("%s: there is no test %s in %s", m[1], name, dir)
			}
			listed[name] = m[1]
		}
	}
	for c := range missing {
		t.Errorf("case %s has no row", c)
	}
	byCase := regexp.MustCompile(`^Test(?:Host|Target)([NDF]\d\d)`)
	for name := range testFuncs(t, "nvme/nvmetest") {
		if m := byCase.FindStringSubmatch(name); m != nil && listed[name] != m[1] {
			t.Errorf("test %s is in the row of %q", name, listed[name])
		}
	}
}
