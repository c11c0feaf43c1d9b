# A process whose files stay on the source in part: /srv/far. A signal lets it use all of them, and write "OK" or what is wrong to /srv/app/verdict.
import errno, fcntl, mmap, os, signal, sys, traceback

os.makedirs("/srv/app")
os.makedirs("/srv/far/in")
os.chdir("/srv/app")
log = open("log", "a")
far = open("/srv/far/log", "a+")
fcntl.flock(far, fcntl.LOCK_EX)
with open("/srv/far/map", "wb") as f:
    f.write(bytes(4096))
f = open("/srv/far/map", "r+b")
shared = mmap.mmap(f.fileno(), 4096)
gone = open("/srv/far/gone", "w+")
gone.write("unlinked")
gone.flush()
os.unlink("/srv/far/gone")
fardir = os.open("/srv/far/in", os.O_RDONLY | os.O_DIRECTORY)
ready, tell = os.pipe()
child = os.fork()
if child == 0:  # works in what stays
    os.chdir("/srv/far/in")
    signal.signal(signal.SIGUSR1, lambda *_: open("child", "a").write("child\n"))
    os.write(tell, b"!")
    while True:
        signal.pause()
os.read(ready, 1)
n = 0

def use():
    global n
    n += 1
    print(n, file=log, flush=True)
    print(n, file=far, flush=True)
    far.seek(0)
    assert far.read() == "".join("%d\n" % i for i in range(1, n + 1)), "log in what stays"
    shared[n] = n
    shared.flush()
    assert bytes(shared[1:n + 1]) == bytes(range(1, n + 1)), "mapping"
    gone.seek(0)
    assert gone.read() == "unlinked", "unlinked file"
    here = os.stat("/")
    up = os.stat("../../..", dir_fd=fardir)
    assert (here.st_dev, here.st_ino) == (up.st_dev, up.st_ino), "above what stays is another root"
    other = os.open("/srv/far/log", os.O_RDWR)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise AssertionError("lock is free")
    except BlockingIOError:
        pass
    os.close(other)
    with open("made", "w", opener=lambda p, f: os.open(p, f, 0o644, dir_fd=fardir)) as f:
        f.write(str(n))
    assert open("/srv/far/in/made").read() == str(n), "file that was made"
    try:
        os.rename("/srv/far/in/made", "/srv/app/made")
        there = "one"
    except OSError as e:
        assert e.errno == errno.EXDEV, e
        there = "two"
    else:
        os.rename("/srv/app/made", "/srv/far/in/made")
    os.kill(child, signal.SIGUSR1)
    return "OK %d, %s file systems" % (n, there)

def verdict(*_):
    try:
        v = use()
    except BaseException:
        v = traceback.format_exc()
    with open("/srv/app/verdict.new", "w") as f:
        f.write(v)
    os.rename("/srv/app/verdict.new", "/srv/app/verdict")

signal.signal(signal.SIGUSR1, verdict)
verdict()
while True:
    signal.pause()
