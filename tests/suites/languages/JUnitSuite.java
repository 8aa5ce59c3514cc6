// Runs the JUnit tests below a directory of classes: a line of JSON for each test as it ends.
// Arguments: the directory, a file of unique ids that are not run (again), and the seconds that a test may take.
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentMap;
import org.junit.platform.engine.FilterResult;
import org.junit.platform.engine.TestExecutionResult;
import org.junit.platform.engine.discovery.ClassNameFilter;
import org.junit.platform.engine.discovery.DiscoverySelectors;
import org.junit.platform.launcher.Launcher;
import org.junit.platform.launcher.LauncherDiscoveryRequest;
import org.junit.platform.launcher.PostDiscoveryFilter;
import org.junit.platform.launcher.TestExecutionListener;
import org.junit.platform.launcher.TestIdentifier;
import org.junit.platform.launcher.TestPlan;
import org.junit.platform.launcher.core.LauncherDiscoveryRequestBuilder;
import org.junit.platform.launcher.core.LauncherFactory;

public class JUnitSuite implements TestExecutionListener {
    private static final PrintStream told = new PrintStream(new FileOutputStream(FileDescriptor.out), true);

    private final ConcurrentMap<TestIdentifier, Long> running = new ConcurrentHashMap<>();
    private TestPlan plan;

    public static void main(String[] arguments) throws Exception {
        System.setOut(System.err);
        Set<String> without = Set.copyOf(Files.readAllLines(Path.of(arguments[1])));
        LauncherDiscoveryRequest request = LauncherDiscoveryRequestBuilder.request()
            .selectors(DiscoverySelectors.selectClasspathRoots(Set.of(Path.of(arguments[0]))))
            .filters(ClassNameFilter.includeClassNamePatterns(".*Tests?$"))
            .filters((PostDiscoveryFilter) test -> FilterResult.includedIf(!without.contains(test.getUniqueId().toString())))
            .build();
        JUnitSuite listener = new JUnitSuite();
        listener.watch(1000L * Integer.parseInt(arguments[2]));
        Launcher launcher = LauncherFactory.create();
        launcher.execute(request, listener);
        System.exit(0);
    }

    /** Ends the program where a test takes longer than `most` milliseconds: a thread that reads a socket ends no other way. */
    private void watch(long most) {
        Thread thread = new Thread(() -> {
            while (true) {
                try { Thread.sleep(500); } catch (InterruptedException impossible) { return; }
                running.forEach((test, since) -> {
                    if (System.currentTimeMillis() - since > most) {
                        tell(test, "failed", "the test hung: it took longer than " + most / 1000 + " s");
                        Runtime.getRuntime().halt(3);
                    }
                });
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    @Override public void testPlanExecutionStarted(TestPlan begun) { plan = begun; }

    @Override public void executionStarted(TestIdentifier test) {
        if (test.isTest()) running.put(test, System.currentTimeMillis());
    }

    @Override public void executionSkipped(TestIdentifier test, String reason) { tell(test, "skipped", reason); }

    @Override public void executionFinished(TestIdentifier test, TestExecutionResult result) {
        running.remove(test);
        switch (result.getStatus()) {
            case SUCCESSFUL: if (test.isTest()) tell(test, "passed", ""); break;
            case ABORTED: tell(test, "skipped", said(result.getThrowable())); break;
            default: tell(test, "failed", said(result.getThrowable()));
        }
    }

    /** `jdbc2.BlobTest.set`, with the parameters of class and method. */
    private String name(TestIdentifier test) {
        Optional<TestIdentifier> parent = plan.getParent(test);
        String own = test.getLegacyReportingName();
        return parent.isEmpty() || parent.get().getParentId().isEmpty() ? own : name(parent.get()) + "." + own;
    }

    /** The traceback, with what was said in one last line. */
    private static String said(Optional<Throwable> thrown) {
        if (thrown.isEmpty()) return "";
        StringWriter text = new StringWriter();
        thrown.get().printStackTrace(new PrintWriter(text));
        return text + "\n" + String.valueOf(thrown.get()).replaceAll("\\s+", " ");
    }

    private void tell(TestIdentifier test, String status, String detail) {
        StringBuilder line = new StringBuilder("[");
        for (String word : List.of(name(test), status, detail, test.getUniqueId())) {
            line.append(line.length() > 1 ? "," : "").append('"');
            for (char c : word.toCharArray()) {
                if (c == '"' || c == '\\') line.append('\\').append(c);
                else if (c < ' ' || c > '~') line.append(String.format("\\u%04x", (int) c));
                else line.append(c);
            }
            line.append('"');
        }
        told.println(line.append("]"));
    }
}
