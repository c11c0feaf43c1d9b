# rotate.py DIR: a log of numbered lines, and a process of its own that rotates it by rename and SIGHUP, for ever. SIGTERM to the writer ends
# both; then all lines are in the files, in order, each once.
import os, signal, sys, time

d = sys.argv[1]
os.makedirs(d)
os.chdir(d)
again, stop = [], []
signal.signal(signal.SIGHUP, lambda *a: again.append(1))
signal.signal(signal.SIGTERM, lambda *a: stop.append(1))
log = open("log", "a")
writer = os.getpid()
rotator = os.fork()
if rotator == 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    n = 0
    while True:
        if os.path.getsize("log") < 4000:
            time.sleep(0.002)
            continue
        os.rename("log", "log.%06d" % n)
        n += 1
        os.kill(writer, signal.SIGHUP)
        while not os.path.exists("log"):
            time.sleep(0.001)
n = 0
while not stop:
    if again:
        again.clear()
        log.close()
        log = open("log", "a")
    log.write("line %d\n" % n)
    log.flush()
    n += 1
    if n % 50 == 0:
        time.sleep(0.005)
os.kill(rotator, signal.SIGKILL)
os.waitpid(rotator, 0)
lines = [l for f in sorted(f for f in os.listdir(".") if f.startswith("log.")) + ["log"] * os.path.exists("log") for l in open(f)]
bad = [(i, l) for i, l in enumerate(lines) if l != "line %d\n" % i]
with open("verdict.new", "w") as f:
    f.write("OK\n" if not bad and len(lines) == n else "BAD %d lines of %d, first wrong: %r\n" % (len(lines), n, bad[:1]))
os.rename("verdict.new", "verdict")
