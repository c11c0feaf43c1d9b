# Writes numbered lines to standard output, by two descriptors of it, until /srv/stop is there.
import itertools, os, time

for i in itertools.count(1):
    os.write(1 + i % 2, b"%d\n" % i)
    time.sleep(0.0005)
    if os.path.exists("/srv/stop"):
        os.write(1, b"end\n")
        break
