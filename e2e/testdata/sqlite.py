# sqlite.py DIR: two SQLite databases under load, one with a rollback journal and one with a write-ahead log, each with two threads and a process that
# write to it by connections of their own. On SIGUSR1 it demands that no transaction failed or is lost, that integrity_check says ok, and that
# connections which are made now, here and in another process, know of the locks of those that were there before.
import faulthandler, os, signal, sqlite3, subprocess, sys, threading, time, traceback

LOCKED = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\ntry: c.execute('BEGIN IMMEDIATE'); print('got it')\nexcept sqlite3.OperationalError as e: print(e)"


def transfer(c, who):
    c.execute("BEGIN IMMEDIATE")
    n = c.execute("SELECT count(*) FROM log").fetchone()[0]
    c.execute("UPDATE acct SET v = v - ? WHERE id = ?", (n % 7, n % 100))
    c.execute("UPDATE acct SET v = v + ? WHERE id = ?", (n % 7, (n + 37) % 100))
    c.execute("INSERT INTO log VALUES (?, ?)", (n, who))  # n is the key: an update that was lost would be here twice
    c.execute("COMMIT")


class Load:
    def __init__(self, path, mode):
        self.path, self.failed, self.done, self.stop = path, [], 0, False
        self.held = self.connect()
        self.held.execute("PRAGMA journal_mode=" + mode)
        self.held.execute("CREATE TABLE acct (id INTEGER PRIMARY KEY, v INTEGER)")
        self.held.execute("CREATE TABLE log (n INTEGER PRIMARY KEY, who TEXT)")
        self.held.executemany("INSERT INTO acct VALUES (?, 0)", [(i,) for i in range(100)])
        self.lock = threading.Lock()
        for k in range(2):
            threading.Thread(target=self.write, args=("thread %d" % k, self.connect(), 0), daemon=True).start()
        self.child = subprocess.Popen([sys.executable, sys.argv[0], "write", path])

    def connect(self, timeout=10):
        c = sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)
        c.execute("SELECT count(*) FROM sqlite_master")  # opens the file
        return c

    def write(self, who, c, times):
        left = times
        while not self.stop and (times == 0 or left > 0):
            try:
                transfer(c, who)
            except Exception as e:
                self.failed.append("%s: %r" % (who, e))
                c.close()  # and with it the lock
                return
            with self.lock:
                self.done += 1
            left -= 1
            time.sleep(0.01)

    def check(self):
        bad = list(self.failed)
        if self.child.poll() is not None:
            bad.append("the writing process has ended")
        with self.lock:
            before = self.done
        self.held.execute("BEGIN IMMEDIATE")
        new = self.connect(0)
        try:
            new.execute("BEGIN IMMEDIATE")
            bad.append("a new connection does not know of the lock of an old one")
            new.execute("ROLLBACK")
        except sqlite3.OperationalError as e:
            if "locked" not in str(e):
                bad.append("a new connection: %s" % e)
        new.close()  # must not give up the process's locks
        out = subprocess.run([sys.executable, "-c", LOCKED, self.path], capture_output=True, text=True).stdout.strip()
        if "locked" not in out:
            bad.append("another process: %r" % out)
        try:
            self.held.execute("UPDATE acct SET v = v + 0 WHERE id = 1")  # opens the journal
            self.held.execute("COMMIT")
        except Exception as e:
            bad.append("an old connection: %r" % e)
            self.held.execute("ROLLBACK")
        t = threading.Thread(target=self.write, args=("new", self.connect(), 30))
        t.start()
        t.join()
        c = self.connect()
        c.execute("BEGIN IMMEDIATE")
        with self.lock:
            done = self.done
        ok = c.execute("PRAGMA integrity_check").fetchone()[0]
        n, total, most = c.execute("SELECT count(*), (SELECT sum(v) FROM acct), max(n) FROM log").fetchone()
        own = c.execute("SELECT count(*) FROM log WHERE who <> 'process'").fetchone()[0]
        c.execute("COMMIT")
        if ok != "ok" or total != 0 or most != n - 1 or not done <= own <= done + 3 or done < before + 30:
            bad.append("integrity %s, sum %s, %d rows up to %s, %d by threads of which %d were seen to be done" % (ok, total, n, most, own, done))
        return ["%s: %s" % (os.path.basename(self.path), b) for b in bad + self.failed]


if sys.argv[1] == "write":
    c = sqlite3.connect(sys.argv[2], timeout=10, isolation_level=None)
    while True:
        transfer(c, "process")
        time.sleep(0.01)
d = sys.argv[1]
os.makedirs(d)
asked = []
signal.signal(signal.SIGUSR1, lambda *a: asked.append(1))
trace = open(d + "/trace", "w")
loads = [Load(d + "/rollback", "DELETE"), Load(d + "/wal", "WAL")]
while True:
    faulthandler.dump_traceback_later(30, file=trace)  # where it hangs, if it does
    try:
        bad = [b for l in loads for b in l.check()]
    except Exception:
        bad = [traceback.format_exc()] + [b for l in loads for b in l.failed]
    with open(d + "/verdict.new", "w") as f:
        f.write("\n".join(bad) + "\n" if bad else "OK\n")
    os.rename(d + "/verdict.new", d + "/verdict")
    faulthandler.cancel_dump_traceback_later()
    while not asked:
        time.sleep(0.01)
    asked.clear()
