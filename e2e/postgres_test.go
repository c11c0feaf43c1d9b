package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// pgBin finds the server's programs.
func pgBin(t *testing.T) string {
	t.Helper()
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(dirs) == 0 {
		kerneltest.Skip(t, "no PostgreSQL server is installed")
	}
	return filepath.Dir(dirs[len(dirs)-1])
}

// TestPostgres moves a PostgreSQL of its own user, in an IPC namespace of its own, while pgbench writes to it, and detaches it; every committed
// transaction must be there: pgbench's tables have sums that are equal only then. Its shared buffers, anonymous shared memory, come lazily.
func TestPostgres(t *testing.T) {
	bin := pgBin(t)
	r := newHosts(t)
	shim := filepath.Join(r.dir, "shim.so")
	src, err := os.ReadFile("../lab/testdata/criu-shim.c")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(kerneltest.CompileC(t, string(src), "-shared", "-fPIC", "-ldl"))
	if err == nil {
		err = os.WriteFile(shim, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"LAZYMIG_CRIU_PRELOAD=" + shim}
	r.sourceEnv = env
	r.agentWith(r.l.B, env)
	a, bb := r.l.A, r.l.B
	as := "setpriv --reuid postgres --regid postgres --clear-groups "
	r.sh(a, "mkdir -p /srv/pg && chown postgres /srv/pg && "+as+bin+"/initdb -D /srv/pg/data -A trust >/dev/null")
	p := r.spawn(a, "/bin/sh", "-c", "exec unshare -i "+as+bin+"/postgres -D /srv/pg/data -p 5433 -k /srv/pg -c listen_addresses=0.0.0.0 -c shared_buffers=256MB >/srv/pg/out 2>&1 </dev/null")
	psql := func(sql string) string { return "psql -h 127.0.0.1 -p 5433 -U postgres -Atc \"" + sql + "\"" }
	r.says(a, "PostgreSQL to answer", psql("select 1")+" postgres", "1")
	r.sh(a, "pgbench -h 127.0.0.1 -p 5433 -U postgres -i -s 2 postgres >/dev/null 2>&1")
	load := a.Command(r.ctx, "pgbench", "-h", "127.0.0.1", "-p", "5433", "-U", "postgres", "-c", "2", "-T", "100", "-n", "postgres")
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	r.eventually("pgbench to write", func() bool { return r.sh(a, psql("select count(*)>50 from pgbench_history")+" postgres") == "t" })
	pid, root := r.detach(a, bb, p.Pid, r.locals(a, bb)...)
	for _, e := range r.last.events {
		if strings.Contains(e.Text, "copied while the tree stands still") {
			t.Errorf("its shared buffers were not lazy: %s", e.Text)
		}
	}
	if err := load.Wait(); err == nil {
		t.Error("pgbench has kept its connections, which are closed")
	}
	r.strand(bb)
	dirs := "/srv/pg/data && find . -type d | LC_ALL=C sort"
	if home, moved := r.sh(a, "cd "+dirs), r.sh(bb, "cd "+root+dirs); home != moved {
		t.Errorf("directories on A:\n%s\non B:\n%s", home, moved)
	}
	r.alone(bb, pid)
	sums := psql("select (select sum(abalance) from pgbench_accounts)=(select sum(delta) from pgbench_history) and (select sum(bbalance) from pgbench_branches)=(select sum(delta) from pgbench_history)") + " postgres"
	r.says(bb, "equal sums on B", sums, "t")
	out := r.sh(bb, "pgbench -h 127.0.0.1 -p 5433 -U postgres -c 2 -t 200 -n postgres 2>&1")
	if !strings.Contains(out, "400/400") {
		t.Errorf("pgbench on B: %s", out)
	}
	r.says(bb, "equal sums after more on B", sums, "t")
	r.sh(bb, bin+"/pg_amcheck -h 127.0.0.1 -p 5433 -U postgres --install-missing --heapallindexed --parent-check postgres")
	r.end(bb, pid, "INT")
	if out := r.sh(bb, "cat "+root+"/srv/pg/out"); strings.Contains(out, "PANIC") || strings.Contains(out, "FATAL:  could not") {
		t.Errorf("PostgreSQL's log: %s", out)
	}
	r.over(bb)
}
