# kernelobjects.py DIR: holds many kinds of kernel objects, and on SIGUSR1 checks that each of them still is what it was; the verdict goes
# to DIR/verdict. SIGTERM ends it.
import faulthandler, fcntl, mmap, os, select, signal, socket, struct, subprocess, sys, threading, time, ctypes

d = sys.argv[1]
os.makedirs(d + "/sub", exist_ok=True)
os.chdir(d + "/sub")
with open(d + "/data", "wb") as f:
    f.write(b"0123456789" * 1000)
data = open(d + "/data", "r+b", buffering=0)
data.seek(1234)
log = os.open(d + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(log, b"before\n")
gone = open(d + "/gone", "w+b", buffering=0)
gone.write(b"unlinked contents")
os.unlink(d + "/gone")
r, w = os.pipe()
os.write(w, b"in the pipe")
locked = open(d + "/locked", "wb")
fcntl.lockf(locked, fcntl.LOCK_EX)
flocked = open(d + "/flocked", "wb")
fcntl.flock(flocked, fcntl.LOCK_EX)
s1, s2 = socket.socketpair()
s1.send(b"in the socket")
lis = socket.socket(socket.AF_UNIX)
lis.bind(d + "/sock")
lis.listen(5)
tcp = socket.socket()
tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
tcp.bind(("0.0.0.0", 8123))
tcp.listen(5)
ep = select.epoll()
ep.register(r, select.EPOLLIN)
libc = ctypes.CDLL(None, use_errno=True)
ino = libc.inotify_init1(0o4000)
assert libc.inotify_add_watch(ino, (d + "/sub").encode(), 0x100) >= 0
tfd = libc.timerfd_create(1, 0)
libc.timerfd_settime(tfd, 0, struct.pack("qqqq", 0, 50_000_000, 0, 50_000_000), None)
efd = libc.eventfd(7, 0)
shared = mmap.mmap(os.open(d + "/shared", os.O_RDWR | os.O_CREAT), 8192) if os.truncate(os.open(d + "/shared", os.O_RDWR | os.O_CREAT), 8192) is None else None
shared[0:6] = b"shared"
anon = bytearray(os.urandom(1 << 20))
total = sum(anon)
ticks = [0]
signal.signal(signal.SIGALRM, lambda *a: ticks.__setitem__(0, ticks[0] + 1))
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
child = subprocess.Popen(["/bin/sh", "-c", "while read x; do echo got $x; done"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
mono = time.monotonic()
state = {"alive": 0}
def beat():
    while True:
        state["alive"] += 1
        time.sleep(0.01)
threading.Thread(target=beat, daemon=True).start()
os.umask(0o027)
todo = []
signal.signal(signal.SIGUSR1, lambda *a: todo.append(1))
os.environ["LAZY"] = "yes"
def lost():  # what CRIU loses without a word: CPUs, timer slack, I/O priority, KSM
    return os.sched_getaffinity(0), libc.prctl(30, 0, 0, 0, 0), libc.syscall(252, 1, 0), libc.prctl(68, 0, 0, 0, 0)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
libc.prctl(29, 123456, 0, 0, 0)
libc.syscall(251, 1, 0, 2 << 13 | 5)
ksm = libc.prctl(67, 1, 0, 0, 0) == 0  # Linux 6.4 with CONFIG_KSM
had = lost()
assert had[1:] == (123456, 2 << 13 | 5, int(ksm)), had

def check():
    bad = []
    trace = open(d + "/trace", "w")
    faulthandler.dump_traceback_later(10, file=trace)  # where it hangs, if it does
    def want(what, got, exp):
        if got != exp: bad.append("%s: %r, want %r" % (what, got, exp))
    want("offset", data.seek(0, 1), 1234)
    want("data", data.read(6), b"456789")
    data.seek(1234)
    os.write(log, b"after\n")
    want("log", open(d + "/log").read().split("\n")[0], "before")
    gone.seek(0)
    want("unlinked", gone.read(), b"unlinked contents")
    want("epoll", [f for f, _ in ep.poll(1)], [r])
    want("pipe", os.read(r, 100), b"in the pipe")
    os.write(w, b"in the pipe")
    want("socketpair", s2.recv(100), b"in the socket")
    s1.send(b"in the socket")
    c = socket.socket(socket.AF_UNIX)
    c.connect(d + "/sock")
    a, _ = lis.accept()
    c.send(b"hi"); want("unix listener", a.recv(10), b"hi")
    c.close(); a.close()
    c = socket.create_connection(("127.0.0.1", 8123), 5)
    a, _ = tcp.accept()
    a.send(b"ho"); want("tcp listener", c.recv(10), b"ho")
    c.close(); a.close()
    want("cwd", os.getcwd(), d + "/sub")
    open("made", "w").write("x"); os.unlink("made")
    want("inotify", len(os.read(ino, 4096)) > 0, True)
    want("timerfd", len(os.read(tfd, 8)), 8)
    want("eventfd", struct.unpack("Q", os.read(efd, 8))[0], 7)
    os.write(efd, struct.pack("Q", 7))
    want("shared mapping", shared[0:6], b"shared")
    shared[4096:4100] = b"more"; shared.flush()
    want("shared file", open(d + "/shared", "rb").read()[4096:4100], b"more")
    want("memory", sum(anon), total)
    child.stdin.write(b"ping\n"); want("child", child.stdout.readline(), b"got ping\n")
    n = ticks[0]; a = state["alive"]
    end = time.monotonic() + 10
    while (ticks[0] == n or state["alive"] == a) and time.monotonic() < end: time.sleep(0.01)
    want("itimer", ticks[0] > n, True)
    want("thread", state["alive"] > a, True)
    want("monotonic", 0 < time.monotonic() - mono < 600, True)
    pid = os.fork()
    if pid == 0:  # locks are held against others
        code = 0
        try:
            fcntl.lockf(open(d + "/locked", "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB); code |= 1
        except OSError: pass
        try:
            fcntl.flock(open(d + "/flocked", "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB); code |= 2
        except OSError: pass
        os._exit(code)
    want("locks", os.waitpid(pid, 0)[1], 0)
    want("umask", os.umask(0o027), 0o027)
    want("CPUs, timer slack, I/O priority and KSM", lost(), had)
    want("environment", os.environ["LAZY"], "yes")
    import json, decimal, sqlite3  # files never opened before
    want("json", json.loads("[1]"), [1])
    faulthandler.cancel_dump_traceback_later()
    return bad

open(d + "/verdict", "w").write("ready\n")
while True:
    while not todo: time.sleep(0.02)
    todo.clear()
    try:
        bad = check()
    except BaseException as e:
        import traceback
        bad = [traceback.format_exc()]
    with open(d + "/verdict.new", "w") as f: f.write("\n".join(bad) + "\n" if bad else "OK\n")
    os.rename(d + "/verdict.new", d + "/verdict")
