# buffered.py pipe|socket: starts a shell whose standard input and output have bytes in them that nobody reads, until /srv/go is there.
import os, socket, subprocess, sys, time

script = "seq 1 3000; sleep 1000 </dev/null >/dev/null & S=$!; trap 'cat; echo over; kill $S; exit 7' USR1; touch /srv/ready; wait"
if sys.argv[1] == "socket":
    ours, its = socket.socketpair()
    r, w = ours.dup().detach(), ours.detach()
    p = subprocess.Popen(["/bin/sh", "-c", script], stdin=its, stdout=its)
    its.close()
else:
    i, w = os.pipe()
    r, o = os.pipe()
    p = subprocess.Popen(["/bin/sh", "-c", script], stdin=i, stdout=o)
    os.close(i)
    os.close(o)
os.write(w, b"early 1\nearly 2\n")
with open("/srv/pid", "w") as f:
    print(p.pid, file=f)
while not os.path.exists("/srv/go"):
    time.sleep(0.01)
os.write(w, b"late\n")
if sys.argv[1] == "socket":
    socket.socket(fileno=os.dup(w)).shutdown(socket.SHUT_WR)
else:
    os.close(w)
with open("/srv/out", "wb", 0) as out:
    while chunk := os.read(r, 65536):
        out.write(chunk)
open("/srv/over", "w").close()
