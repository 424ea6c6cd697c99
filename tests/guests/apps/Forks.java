// Each line of input starts three programs, which answer over pipes; the results become one line.
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;

public class Forks {
    static String run(String script, String input) throws Exception {
        Process process = new ProcessBuilder("sh", "-c", script).redirectErrorStream(true).start();
        try (var to = process.getOutputStream()) {
            to.write(input.getBytes(StandardCharsets.UTF_8));
        }
        String said = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        return said.trim() + "/" + process.waitFor();
    }

    public static void main(String[] args) throws Exception {
        var lines = new BufferedReader(new InputStreamReader(System.in));
        String line, state = "start";
        while ((line = lines.readLine()) != null) {
            state = run("sha256sum | cut -c1-16", state + line);
            String code = run("cat >/dev/null; sleep 0.05; exit " + (Integer.parseInt(line) % 9), line);
            String sorted = run("tr ' ' '\\n' | sort -n | tr '\\n' ' '", "3 1 2 " + line);
            System.out.println(line + " " + state + " " + code + " " + sorted);
        }
        System.out.println("end " + state);
    }
}
