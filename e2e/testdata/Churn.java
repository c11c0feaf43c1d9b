import java.io.RandomAccessFile;
import java.util.*;
import java.util.zip.CRC32;

/** Churn STATUS: threads fill and drop maps of checked byte arrays, so that the collector is always busy; its status line is as checker.c's. */
public class Churn {
  static volatile boolean stop;
  static final java.util.concurrent.atomic.AtomicLong rounds = new java.util.concurrent.atomic.AtomicLong(), wrong = new java.util.concurrent.atomic.AtomicLong();

  static long sum(byte[] b) { CRC32 c = new CRC32(); c.update(b); return c.getValue(); }

  static void work(int seed) {
    Random r = new Random(seed);
    Map<Integer, byte[]> m = new HashMap<>();
    Map<Integer, Long> s = new HashMap<>();
    while (!stop) {
      int k = r.nextInt(2000);
      byte[] old = m.get(k);
      if (old != null && sum(old) != s.get(k)) wrong.incrementAndGet();
      byte[] b = new byte[1 + r.nextInt(20000)];
      r.nextBytes(b);
      m.put(k, b);
      s.put(k, sum(b));
      rounds.incrementAndGet();
    }
    for (Integer k : m.keySet()) if (sum(m.get(k)) != s.get(k)) wrong.incrementAndGet();
  }

  public static void main(String[] a) throws Exception {
    List<Thread> ts = new ArrayList<>();
    for (int i = 0; i < 3; i++) { final int n = i; Thread t = new Thread(() -> work(n)); ts.add(t); t.start(); }
    RandomAccessFile f = new RandomAccessFile(a[0], "rw");
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      stop = true;
      try {
        for (Thread t : ts) t.join();
        say(f, wrong.get() == 0 ? "OK" : "BAD");
      } catch (Exception e) { wrong.incrementAndGet(); }
    }));
    while (true) { say(f, "run"); Thread.sleep(20); }
  }

  static synchronized void say(RandomAccessFile f, String w) throws Exception {
    if (w.equals("run") && stop) return;
    f.seek(0);
    f.write(String.format("%-4s %12d %10d %20d %8d%n", w, rounds.get(), 0, 0, wrong.get()).getBytes());
  }
}
