# files.py DIR: forty open files, readers, writers, appenders, unlinked ones, mappings shared and private, a FIFO, all at work in threads, and 64 mappings more. On SIGUSR1 it checks
# them all, and that what a program does later still works: threads, fork, exec, modules that it has never opened. On SIGUSR2 its own script starts it again.
import mmap, os, random, signal, subprocess, sys, threading, time

d = sys.argv[1]
os.makedirs(d + "/plugins", exist_ok=True)
os.chdir(d)
restarted = os.path.exists("starts")
with open("starts", "a") as f:
    f.write("start\n")
with open("plugins/never_opened.py", "w") as f:
    f.write("import decimal, xml.dom.minidom\nanswer = int(decimal.Decimal(6) * 7)\n")
SIZE = 64 << 10


def fill(name, seed):
    b = random.Random(seed).randbytes(SIZE)
    with open(name, "wb") as f:
        f.write(b)
    return b


files = []  # (kind, file, what it has to hold)
for i in range(10):
    b = fill("r%d" % i, i)
    f = open("r%d" % i, "rb", buffering=0)
    f.seek(i * 1000)
    files.append(["read", f, b])
for i in range(10):
    b = fill("w%d" % i, 100 + i)
    files.append(["write", open("w%d" % i, "r+b", buffering=0), bytearray(b)])
for i in range(8):
    open("a%d" % i, "wb").close()
    files.append(["append", open("a%d" % i, "ab", buffering=0), 0])
for i in range(4):
    b = fill("u%d" % i, 200 + i)
    files.append(["unlinked", open("u%d" % i, "r+b", buffering=0), bytearray(b)])
    os.unlink("u%d" % i)
for i in range(4):
    b = fill("s%d" % i, 300 + i)
    f = open("s%d" % i, "r+b", buffering=0)
    files.append(["shared", f, bytearray(b), mmap.mmap(f.fileno(), SIZE)])
for i in range(4):
    b = fill("p%d" % i, 400 + i)
    f = open("p%d" % i, "rb", buffering=0)
    m = mmap.mmap(f.fileno(), SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    files.append(["private", f, bytearray(b), m])
assert len(files) == 40
still = [mmap.mmap(x[1].fileno(), 4096, prot=mmap.PROT_READ) for x in (files[:10] * 7)[:64]]  # each with a descriptor of its own
if not os.path.exists("fifo"):
    os.mkfifo("fifo")
taker = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
giver = os.open("fifo", os.O_WRONLY)
os.set_blocking(taker, True)
in_fifo = [0, 0]  # numbers that were written, and read
lock = threading.Lock()
steps = [0]


def work(mine, seed):
    r = random.Random(seed)
    while True:
        with lock:
            for x in mine:
                b = r.randbytes(100)
                off = r.randrange(SIZE - 100)
                if x[0] in ("write", "unlinked"):
                    os.pwrite(x[1].fileno(), b, off)
                    x[2][off : off + 100] = b
                elif x[0] in ("shared", "private"):
                    x[3][off : off + 100] = b
                    x[2][off : off + 100] = b
                elif x[0] == "append":
                    x[1].write(b"%09d\n" % x[2])
                    x[2] += 1
            steps[0] += 1
        time.sleep(0.005)




def pipeline():  # 500 numbers are on the way
    while True:
        with lock:
            os.write(giver, b"%09d\n" % in_fifo[0])
            in_fifo[0] += 1
            take()
        time.sleep(0.001)


def take():
    got = os.read(taker, 10)
    if got != b"%09d\n" % in_fifo[1]:
        in_fifo.append("%r instead of number %d" % (got, in_fifo[1]))
    in_fifo[1] += 1


for f in [b"%09d\n" % n for n in range(500)]:
    os.write(giver, f)
in_fifo[0] = 500
threading.Thread(target=pipeline, daemon=True).start()
for k in range(4):
    threading.Thread(target=work, args=(files[k::4], k), daemon=True).start()


def check():
    bad = []
    with lock:
        for i, x in enumerate(files):
            kind, f = x[0], x[1]
            if kind == "read":
                got, want = f.read(500), x[2][i * 1000 : i * 1000 + 500]
                f.seek(i * 1000)
            elif kind == "append":
                got, want = open(f.name, "rb").read(), b"".join(b"%09d\n" % n for n in range(x[2]))
            elif kind == "private":
                got, want = x[3][:], bytes(x[2])
                if open(f.name, "rb").read() != random.Random(400 + i - 36).randbytes(SIZE):
                    bad.append("%s: its file was changed" % f.name)
            else:
                got, want = os.pread(f.fileno(), SIZE + 1, 0), bytes(x[2])
                if kind == "shared" and x[3][:] != want:
                    bad.append("%s: its mapping is another" % f.name)
                if kind != "unlinked" and open(f.name, "rb").read() != want:
                    bad.append("%s: by its name it is another" % f.name)
                if kind == "unlinked" and os.fstat(f.fileno()).st_nlink != 0:
                    bad.append("%s: it has a name" % f.name)
            if got != want:
                bad.append("%s %s: %d bytes are not the %d that it has to hold" % (kind, f.name, len(got), len(want)))
        by_name = os.open("fifo", os.O_WRONLY | os.O_NONBLOCK)
        os.write(by_name, b"%09d\n" % in_fifo[0])
        os.close(by_name)
        in_fifo[0] += 1
        while in_fifo[1] < in_fifo[0]:
            take()
        for n in range(500):
            os.write(giver, b"%09d\n" % (in_fifo[0] + n))
        in_fifo[0] += 500
        bad += in_fifo[2:]
    for i, m in enumerate(still):
        if m[:] != files[i % 10][2][:4096]:
            bad.append("mapping %d of %s" % (i, files[i % 10][1].name))
    n = []
    t = threading.Thread(target=n.append, args=(1,))
    t.start()
    t.join()
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 7:
        bad.append("fork")
    if n != [1]:
        bad.append("thread")
    if subprocess.run(["/bin/sh", "-c", "cat r0 | sha256sum"], capture_output=True).returncode != 0:
        bad.append("exec")
    code = "import sys; sys.path.insert(0, 'plugins'); import never_opened, email.mime.text; print(never_opened.answer)"
    if subprocess.run([sys.executable, "-c", code], capture_output=True).stdout != b"42\n":
        bad.append("another python3")
    sys.path.insert(0, d + "/plugins")
    import never_opened, asyncio, csv

    if never_opened.answer != 42:
        bad.append("import")
    return bad


asked, again = [], []
signal.signal(signal.SIGUSR1, lambda *a: asked.append(1))
signal.signal(signal.SIGUSR2, lambda *a: again.append(1))
with open("ctl", "w") as f:
    f.write('#!/bin/sh\nset -e\ncd "$(dirname "$0")"\nkill "$(cat pid)"\nwhile kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.05; done\nexec %s %s %s\n' % (sys.executable, os.path.abspath(sys.argv[0]), d))
with open("pid.new", "w") as f:
    f.write("%d\n" % os.getpid())
os.rename("pid.new", "pid")


def say(word):
    with open("verdict.new", "w") as f:
        f.write(word + "\n")
    os.rename("verdict.new", "verdict")


say("again" if restarted else "ready")
while True:
    while not asked and not again:
        time.sleep(0.01)
    if again:
        again.clear()
        subprocess.Popen(["/bin/sh", d + "/ctl"], start_new_session=True)
        continue
    asked.clear()
    try:
        bad = check()
    except BaseException:
        import traceback

        bad = [traceback.format_exc()]
    say("\n".join(bad) if bad else "OK %d" % steps[0])
