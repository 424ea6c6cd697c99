import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** Each line of input starts one step of work in four threads; its result is one line. */
public class Steps {
    private static long chain(long seed, int rounds) {
        List<long[]> garbage = new ArrayList<>();
        long x = seed;
        for (int i = 0; i < rounds; i++) {
            x ^= x << 13;
            x ^= x >>> 7;
            x ^= x << 17;
            if (i % 1000 == 0) {
                garbage.add(new long[] {x, i});
                if (garbage.size() > 500) garbage.clear();
            }
        }
        return x;
    }

    public static void main(String[] args) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        long total = 0;
        for (String line; (line = in.readLine()) != null; ) {
            List<Callable<Long>> work = new ArrayList<>();
            for (int i = 0; i < 4; i++) {
                final long seed = Long.parseLong(line.trim()) * 1000 + i + 1;
                work.add(() -> chain(seed, 20_000_000));
            }
            for (Future<Long> result : pool.invokeAll(work)) total = total * 31 + result.get();
            System.out.println(line + " " + Long.toHexString(total));
        }
        pool.shutdown();
        System.out.println("end " + Long.toHexString(total));
    }
}
