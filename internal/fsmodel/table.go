package fsmodel

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A testCase is what several users do in a directory of their own, in two parts: what is prepared may come to be somewhere else before the rest is done with it. Nothing
// is expected: a plain directory gets the same, and each operation has to come to the same there. Contents, modes and errors are those of pjdfstest and more; its
// questions are asked anew, none of it is copied.
type testCase struct {
	name    string
	prepare func(c *users)
	do      func(c *users)
}

// users are those of one case in one directory.
type users struct {
	root, alice, bob, carol *User
}

func (c *users) all() []*User { return []*User{c.root, c.alice, c.bob, c.carol} }

func table() []testCase {
	return slices.Concat(modeCases, ownerCases, nameCases, renameCases, openCases, timeCases, xattrCases, nodeCases, dataCases)
}

// Table does all cases in a directory that is new and in a plain one. move is called once, between the two parts, and says where the directory is then, and where all
// that it shows can be found in the end.
func Table(t *testing.T, dir string, move func() (dir, source string)) {
	plain := t.TempDir()
	cases := table()
	prepared := make([][2][]string, len(cases))
	do := func(c *testCase, dir string, part func(*users)) (log []string) {
		var us users
		for i, u := range []**User{&us.root, &us.alice, &us.bob, &us.carol} {
			*u = newUser(t, i, filepath.Join(dir, c.name), &log)
			defer (*u).end()
		}
		if part != nil {
			part(&us)
		}
		for _, u := range us.all() {
			u.closeAll()
		}
		return log
	}
	for i := range cases {
		for k, d := range []string{dir, plain} {
			p := filepath.Join(d, cases[i].name)
			if err := os.Mkdir(p, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(p, 0o777); err != nil { // whatever the umask is
				t.Fatal(err)
			}
			prepared[i][k] = do(&cases[i], d, cases[i].prepare)
		}
	}
	dir, source := move()
	for i := range cases {
		t.Run(cases[i].name, func(t *testing.T) {
			sameSteps(t, prepared[i][0], prepared[i][1])
			sameSteps(t, do(&cases[i], dir, cases[i].do), do(&cases[i], plain, cases[i].do))
			want := inventory(t, filepath.Join(plain, cases[i].name))
			sameSteps(t, inventory(t, filepath.Join(dir, cases[i].name)), want)
			sameSteps(t, inventory(t, filepath.Join(source, cases[i].name)), want)
		})
	}
}

func sameSteps(t *testing.T, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		g, w := "nothing", "nothing"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("%s\n    a plain directory: %s", g, w)
		}
	}
}

// inventory is all that a directory has, with contents and extended attributes.
func inventory(t *testing.T, dir string) (all []string) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		s, err := describe(p)
		if err != nil {
			return err
		}
		names, err := xattrNames(p)
		if err != nil {
			return err
		}
		s = fmt.Sprintf("%.60q %s %s", strings.TrimPrefix(p, dir), s, names)
		if e.Type().IsRegular() {
			name, err := filepath.Rel(dir, p)
			if err != nil {
				return err
			}
			b, err := root.ReadFile(name)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" %.100q", b)
		}
		all = append(all, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
