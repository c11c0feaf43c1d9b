# A tree of two that does what programs do with files, for ever, and checks all that it sees: any error ends it with FAIL in the status.
# usage: writer.py DIRECTORY; the status is "RUN operations 0 0 wrong", and "OK …" after SIGTERM.
import fcntl, mmap, os, signal, sys, traceback

top = sys.argv[1]
os.makedirs(top + "/big")
for i in range(300):
    open(f"{top}/big/{i}", "w").close()
want = sorted(os.listdir(top + "/big"))
ops = 0
stop = False


def ask(*_):
    global stop
    stop = True


signal.signal(signal.SIGTERM, ask)
child = os.fork()
who = "parent" if child else "child"
mine = f"{top}/{who}"
os.mkdir(mine)
held = open(mine + "/held", "w")
fcntl.flock(held, fcntl.LOCK_EX)  # always, so that whoever looks knows of locks


def status(word, wrong=0):
    if child:
        with open(top + "/status.new", "w") as f:
            f.write(f"{word} {ops} 0 0 {wrong}\n")
        os.rename(top + "/status.new", top + "/status")


def step(n):
    global ops
    fd = os.open(top + "/log", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    os.write(fd, f"{who} {n}\n".encode())
    os.close(fd)
    fd = os.open(mine + "/new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.write(fd, b"contents")
    os.fsync(fd)
    os.rename(mine + "/new", mine + "/named")
    os.link(mine + "/named", mine + "/linked")
    os.unlink(mine + "/named")
    os.unlink(mine + "/linked")
    got, st = os.pread(fd, 100, 0), os.fstat(fd)
    # Frozen between the two, the file has one name more as long as the source keeps the tree (dump/remap.go).
    assert (got, st.st_size) == (b"contents", 8) and st.st_nlink <= 1, (n, got, st)
    os.close(fd)
    os.mkdir(mine + "/dir")
    os.symlink("x", mine + "/dir/sym")
    os.unlink(mine + "/dir/sym")
    os.rmdir(mine + "/dir")
    with open(top + "/count", "a+b") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        f.seek(0)
        old = int(f.read() or b"0")
        f.truncate(0)
        f.write(str(old + 1).encode())
        f.flush()
    with open(mine + "/mapped", "a+b") as f:
        f.truncate(8192)
        with mmap.mmap(f.fileno(), 8192) as m:
            m[:] = bytes([n % 256]) * 8192
            m.flush()
    with open(mine + "/mapped", "rb") as f:
        assert f.read() == bytes([n % 256]) * 8192
    if n % 10 == 0:
        assert sorted(os.listdir(top + "/big")) == want
    ops += 100


n = 0
try:
    while not stop:
        step(n)
        n += 1
        status("RUN")
    if not child:
        with open(mine + "/steps", "w") as f:
            f.write(str(n))
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == 0, "child failed"
    steps = {"parent": n, "child": int(open(top + "/child/steps").read())}
    lines = open(top + "/log").read().split("\n")[:-1]
    assert sorted(lines) == sorted(f"{w} {i}" for w in steps for i in range(steps[w])), "log"
    assert int(open(top + "/count").read()) == sum(steps.values()), "count"
    status("OK")
except BaseException:
    with open(f"{top}/trace.{who}", "w") as f:
        traceback.print_exc(file=f)
    status("FAIL", 1)
    os._exit(1)
