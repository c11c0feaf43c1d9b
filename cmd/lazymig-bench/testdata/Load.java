import java.io.PrintWriter;
import java.nio.file.*;
import java.time.Instant;
import java.util.*;

/** Load SIZE_MB READY RESULT: load.c's "uniform" in a Java heap, objects of 4 KB; "fault" is here each operation of more than 20 µs. */
public class Load {
  static final int BINS = 1024;
  static volatile boolean stop;

  static long ns() {
    Instant t = Instant.now();
    return t.getEpochSecond() * 1_000_000_000L + t.getNano();
  }

  static int bin(long v) {
    if (v < 16) return (int) v;
    int e = 63 - Long.numberOfLeadingZeros(v);
    return (e - 3) * 16 + (int) (v >> (e - 4) & 15);
  }

  public static void main(String[] a) throws Exception {
    byte[][] pages = new byte[Integer.parseInt(a[0]) * 250][];
    Random fill = new Random(1);
    for (int i = 0; i < pages.length; i++) {
      fill.nextBytes(pages[i] = new byte[4080]);
      pages[i][0] = (byte) i;
      pages[i][4000] = (byte) (i >> 8);
    }
    long[] bins = new long[BINS], stall = new long[1], wrong = new long[1];
    int[] slots = new int[1 << 15];
    long began = ns() / 10_000_000;
    Thread worker = new Thread(() -> {
      long r = 12345, x = 1;
      while (!stop) {
        r = r * 6364136223846793005L + 1442695040888963407L;
        int i = (int) ((r >>> 20) % pages.length);
        long s = System.nanoTime();
        byte[] p = pages[i];
        if (p[0] != (byte) i || p[4000] != (byte) (i >> 8)) wrong[0]++;
        long d = System.nanoTime() - s;
        if (d > 20_000) {
          stall[0] += d;
          bins[bin(d)]++;
        }
        for (int n = 1500; n > 0; n--) x = x * 6364136223846793005L + 1;
        if (x == 0) wrong[0]++; // it is odd: so that it is computed
        int slot = (int) (ns() / 10_000_000 - began);
        if (slot < slots.length) slots[slot]++;
      }
    });
    List<long[]> gaps = new ArrayList<>();
    Thread watch = new Thread(() -> {
      for (long last = ns(); !stop; ) {
        try { Thread.sleep(0, 200_000); } catch (InterruptedException e) { return; }
        long n = ns();
        if (n - last > 3_000_000 && gaps.size() < 1 << 14) gaps.add(new long[] {n / 1000, (n - last) / 1000});
        last = n;
      }
    });
    worker.start();
    watch.start();
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      stop = true;
      try {
        worker.join();
        watch.join();
        for (int i = 0; i < pages.length; i++) if (pages[i][0] != (byte) i || pages[i][4000] != (byte) (i >> 8)) wrong[0]++;
        StringBuilder s = new StringBuilder();
        for (long[] g : gaps) s.append("gap " + g[0] + " " + g[1] + "\n");
        for (int b = 0; b < BINS; b++) if (bins[b] > 0) s.append("fault " + b + " " + bins[b] + "\n");
        s.append("stall " + stall[0] + "\n");
        for (int i = 0; i < slots.length; i++) if (slots[i] > 0) s.append("rate " + (began + i) + " " + slots[i] + "\n");
        Files.writeString(Path.of(a[2]), s + (wrong[0] > 0 ? "bad" : "ok") + "\n");
      } catch (Exception e) {
        e.printStackTrace();
      }
    }));
    Files.writeString(Path.of(a[1]), "ready\n");
  }
}
