package lazyfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPrograms runs programs whose root is the mount of this host's own root: loader, interpreter, modules, tools.
func TestPrograms(t *testing.T) {
	r := newRigWith(t, true, helperConf{Src: "/", Store: t.TempDir(), Clone: true})
	dev := filepath.Join(r.mnt, "dev")
	must(t, unix.Mount("/dev", dev, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dev, unix.MNT_DETACH)) })
	work := t.TempDir()
	for _, c := range []struct{ what, script, want string }{
		{"python", `exec python3 -c '
import json, sqlite3, os, fcntl, hashlib
p = "` + work + `/py.db"
c = sqlite3.connect(p)
c.execute("pragma journal_mode=wal")
c.execute("create table t(a, b)")
with c:
    c.executemany("insert into t values(?, ?)", ((i, str(i)) for i in range(1000)))
print(c.execute("select sum(a), count(b) from t").fetchone(), os.path.getsize(p) > 0)
'`, "(499500, 1000) True"},
		{"git", `cd ` + work + ` && git init -q g && cd g && for i in 1 2 3; do echo $i > f$i; git add f$i; done &&
git -c user.name=n -c user.email=e@x commit -q -m m && echo changed > f2 && rm f3 && git status --short`, "M f2\n D f3"},
		{"tools", `cd ` + work + ` && mkdir t && cd t && seq 1 1000 | split -l 10 - p && cat p* | sort -n | tail -1 && tar cf ../t.tar . && mkdir ../u && tar xf ../t.tar -C ../u && diff -r . ../u && ls ../u | wc -l && rm -r ../u && find . -type f | wc -l`, "1000\n100\n100"},
		{"exec of what was just written", `cd ` + work + ` && cp /bin/true ./mine && ./mine && echo ok && rm mine`, "ok"},
	} {
		t.Run(c.what, func(t *testing.T) {
			out, err := exec.Command("chroot", r.mnt, "/bin/sh", "-c", c.script).CombinedOutput()
			if got := strings.TrimSpace(string(out)); err != nil || got != c.want {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(work, "g/f2")); err != nil {
		t.Error(err)
	}
}
