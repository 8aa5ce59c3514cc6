// What programs do with pgjdbc, in every preferQueryMode: a line of JSON for each test. Arguments: port, password.
import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.*;
import java.util.*;
import java.util.concurrent.*;
import javax.sql.XAConnection;
import javax.transaction.xa.XAException;
import javax.transaction.xa.XAResource;
import javax.transaction.xa.Xid;
import org.postgresql.PGConnection;
import org.postgresql.PGProperty;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;
import org.postgresql.xa.PGXADataSource;

public class Jdbc {
    interface Test { Object run(Connection c) throws Exception; }

    static String url, password, mode, threshold;
    static final Map<String, Object[]> tests = new LinkedHashMap<>();

    static void test(String name, Object expected, Test test) { tests.put(name, new Object[] {expected, test}); }

    static Connection connect(String... more) throws SQLException {
        Properties p = new Properties();
        p.setProperty("user", "postgres");
        p.setProperty("password", password);
        p.setProperty("sslmode", "disable");
        p.setProperty("options", "-c lock_timeout=5s");
        for (int i = 0; i < more.length; i += 2) p.setProperty(more[i], more[i + 1]);
        return DriverManager.getConnection(url, p);
    }

    static void run(Connection c, String... texts) throws SQLException {
        try (Statement s = c.createStatement()) { for (String text : texts) s.execute(text); }
    }

    static String one(Connection c, String text, Object... values) throws SQLException {
        try (PreparedStatement s = c.prepareStatement(text)) {
            for (int i = 0; i < values.length; i++) s.setObject(i + 1, values[i]);
            try (ResultSet r = s.executeQuery()) { return r.next() ? r.getString(1) : "no row"; }
        }
    }

    /** The name of a distributed transaction. */
    static class Name implements Xid {
        final byte[] global, branch;
        Name(String global, String branch) { this.global = global.getBytes(); this.branch = branch.getBytes(); }
        public int getFormatId() { return 7; }
        public byte[] getGlobalTransactionId() { return global; }
        public byte[] getBranchQualifier() { return branch; }
        boolean is(Xid other) { return Arrays.equals(global, other.getGlobalTransactionId()) && Arrays.equals(branch, other.getBranchQualifier()); }
    }

    static XAConnection distributed() throws SQLException {
        PGXADataSource source = new PGXADataSource();
        source.setUrl(url);
        source.setProperty("sslmode", "disable");
        source.setProperty("preferQueryMode", mode);
        source.setProperty("prepareThreshold", threshold);
        source.setProperty("options", "-c lock_timeout=200ms");
        return source.getXAConnection("postgres", password);
    }

    /** `texts` in a distributed transaction that is prepared, or not yet. */
    static void work(XAConnection x, Xid name, boolean prepare, String... texts) throws Exception {
        x.getXAResource().start(name, XAResource.TMNOFLAGS);
        try (Connection d = x.getConnection()) { run(d, texts); }
        x.getXAResource().end(name, XAResource.TMSUCCESS);
        if (prepare) x.getXAResource().prepare(name);
    }

    static boolean recovers(XAResource r, Name name) throws XAException {
        return Arrays.stream(r.recover(XAResource.TMSTARTRSCAN | XAResource.TMENDRSCAN)).anyMatch(name::is);
    }

    interface Attempt { void run() throws Exception; }

    static String refused(Attempt attempt) throws Exception {
        try { attempt.run(); return "no error"; } catch (XAException e) {
            return e.errorCode + " " + (e.getCause() instanceof SQLException ? ((SQLException) e.getCause()).getSQLState() : "");
        }
    }

    static String state(Test test, Connection c) throws Exception {
        try { test.run(c); return "no error"; } catch (SQLException e) { return e.getSQLState(); }
    }

    public static void main(String[] words) throws Exception {
        url = "jdbc:postgresql://127.0.0.1:" + words[0] + "/postgres";
        password = words[1];
        define();
        defineDistributed();
        for (String eachMode : new String[] {"extended", "extendedForPrepared", "extendedCacheEverything", "simple"})
            for (String eachThreshold : eachMode.equals("simple") ? new String[] {"5"} : new String[] {"1", "5"})
                for (Map.Entry<String, Object[]> each : tests.entrySet()) {
                    String outcome = "passed", detail = "";
                    mode = eachMode;
                    threshold = eachThreshold;
                    try (Connection c = connect("preferQueryMode", mode, "prepareThreshold", threshold, "autosave",
                            threshold.equals("1") ? "always" : "never", "reWriteBatchedInserts", "" + threshold.equals("5"))) {
                        run(c, "drop table if exists jdbc_t cascade", "create table jdbc_t (id serial primary key, v text, n numeric)");
                        Object expected = each.getValue()[0], got = ((Test) each.getValue()[1]).run(c);
                        if (!String.valueOf(expected).equals(String.valueOf(got))) { outcome = "failed"; detail = expected + " != " + got; }
                    } catch (Throwable e) { outcome = "failed"; detail = e.toString(); }
                    System.out.println("[\"" + each.getKey() + " (" + mode + ", prepareThreshold " + threshold + ")\", \"" + outcome
                        + "\", \"" + detail.replace("\\", "\\\\").replace("\"", "'").replace("\n", " ").replace("\t", " ") + "\"]");
                }
        System.exit(0);
    }

    static void define() {
        test("the same statement ten times", 55, c -> {
            int sum = 0;
            try (PreparedStatement s = c.prepareStatement("select ?::int + 0")) {
                for (int i = 1; i <= 10; i++) { s.setInt(1, i); ResultSet r = s.executeQuery(); r.next(); sum += r.getInt(1); }
            }
            return sum;
        });
        test("types there and back", "[1, 2.50, true, 2024-02-29, 13:14:15, null, [a, null, b], 01ff]", c -> {
            try (PreparedStatement s = c.prepareStatement("select ?::int, ?::numeric, ?::bool, ?::date, ?::time, ?::text, ?::text[], ?::bytea")) {
                s.setInt(1, 1); s.setBigDecimal(2, new BigDecimal("2.50")); s.setBoolean(3, true);
                s.setObject(4, java.time.LocalDate.of(2024, 2, 29)); s.setObject(5, java.time.LocalTime.of(13, 14, 15));
                s.setNull(6, Types.VARCHAR); s.setArray(7, c.createArrayOf("text", new String[] {"a", null, "b"}));
                s.setBytes(8, new byte[] {1, -1});
                String last = null;
                for (int i = 0; i < 7; i++) {
                    ResultSet r = s.executeQuery(); r.next();
                    last = List.of(r.getInt(1), r.getBigDecimal(2), r.getBoolean(3), r.getObject(4, java.time.LocalDate.class),
                        r.getObject(5, java.time.LocalTime.class), "" + r.getString(6),
                        Arrays.asList((Object[]) r.getArray(7).getArray()), HexFormat.of().formatHex(r.getBytes(8))).toString();
                }
                return last;
            }
        });
        test("a batch with generated keys", "[1, 2, 3] 3", c -> {
            try (PreparedStatement s = c.prepareStatement("insert into jdbc_t (v) values (?)", Statement.RETURN_GENERATED_KEYS)) {
                for (String v : List.of("a", "b", "c")) { s.setString(1, v); s.addBatch(); }
                s.executeBatch();
                List<Integer> keys = new ArrayList<>();
                ResultSet r = s.getGeneratedKeys();
                while (r.next()) keys.add(r.getInt(1));
                return keys + " " + one(c, "select count(*) from jdbc_t");
            }
        });
        test("a batch of a thousand", "1000", c -> {
            c.setAutoCommit(false);
            try (PreparedStatement s = c.prepareStatement("insert into jdbc_t (v, n) values (?, ?)")) {
                for (int i = 0; i < 1000; i++) { s.setString(1, "v" + i); s.setInt(2, i); s.addBatch(); }
                s.executeBatch();
            }
            c.commit();
            return one(c, "select count(*) from jdbc_t");
        });
        test("a batch that fails in the middle", "23505 0", c -> {
            c.setAutoCommit(false);
            String said = "";
            try (Statement s = c.createStatement()) {
                s.addBatch("insert into jdbc_t (id) values (1)"); s.addBatch("insert into jdbc_t (id) values (1)"); s.addBatch("insert into jdbc_t (id) values (2)");
                s.executeBatch();
            } catch (BatchUpdateException e) { said = e.getSQLState(); }
            c.rollback();
            return said + " " + one(c, "select count(*) from jdbc_t");
        });
        test("a cursor with fetch size", 10000, c -> {
            c.setAutoCommit(false);
            int n = 0;
            try (Statement s = c.createStatement()) {
                s.setFetchSize(37);
                ResultSet r = s.executeQuery("select generate_series(1, 10000)");
                while (r.next()) { n++; if (n == 500) one(c, "select 'in between'"); }
            }
            c.commit();
            return n;
        });
        test("two cursors at once, closed early", "1 1 2 2", c -> {
            c.setAutoCommit(false);
            try (PreparedStatement a = c.prepareStatement("select generate_series(1, 1000)"); PreparedStatement b = c.prepareStatement("select generate_series(1, 1000)")) {
                a.setFetchSize(2); b.setFetchSize(2);
                ResultSet x = a.executeQuery(), y = b.executeQuery();
                x.next(); y.next(); String first = x.getInt(1) + " " + y.getInt(1);
                x.next(); y.next(); return first + " " + x.getInt(1) + " " + y.getInt(1);
            } finally { c.rollback(); }
        });
        test("savepoints", "1", c -> {
            c.setAutoCommit(false);
            run(c, "insert into jdbc_t (v) values ('kept')");
            Savepoint p = c.setSavepoint("point");
            try { run(c, "insert into nosuch values (1)"); } catch (SQLException e) { c.rollback(p); }
            c.commit();
            return one(c, "select count(*) from jdbc_t");
        });
        test("a statement from before DDL", "a|b|a", c -> {
            StringBuilder out = new StringBuilder();
            run(c, "insert into jdbc_t (v) values ('a')");
            try (PreparedStatement s = c.prepareStatement("select v from jdbc_t order by id")) {
                for (int i = 0; i < 7; i++) s.executeQuery();
                ResultSet r = s.executeQuery(); r.next(); out.append(r.getString(1));
                run(c, "alter table jdbc_t alter v type varchar(20)", "update jdbc_t set v = 'b'");
                r = s.executeQuery(); r.next(); out.append("|").append(r.getString(1));
                run(c, "alter table jdbc_t alter v type text", "update jdbc_t set v = 'a'");
                r = s.executeQuery(); r.next(); out.append("|").append(r.getString(1));
            }
            return out;
        });
        test("COPY in and out", "3 1,a;2,b;3,c;", c -> {
            CopyManager m = c.unwrap(PGConnection.class).getCopyAPI();
            long n = m.copyIn("copy jdbc_t (id, v) from stdin csv", new StringReader("1,a\n2,b\n3,c\n"));
            StringWriter w = new StringWriter();
            m.copyOut("copy (select id, v from jdbc_t order by id) to stdout csv", w);
            return n + " " + w.toString().replace("\n", ";");
        });
        test("a COPY that fails", "22P02 1", c -> {
            CopyManager m = c.unwrap(PGConnection.class).getCopyAPI();
            return state(d -> m.copyIn("copy jdbc_t (id) from stdin csv", new StringReader("1\nx\n")), c) + " " + one(c, "select 1");
        });
        test("large objects", "hello", c -> {
            c.setAutoCommit(false);
            LargeObjectManager m = c.unwrap(PGConnection.class).getLargeObjectAPI();
            long oid = m.createLO();
            try (LargeObject o = m.open(oid, LargeObjectManager.READWRITE)) {
                o.write("hello".getBytes()); o.seek(0);
                return new String(o.read(100));
            } finally { m.delete(oid); c.commit(); }
        });
        test("metadata", "[jdbc_t] [id, v, n] id", c -> {
            DatabaseMetaData m = c.getMetaData();
            List<String> tables = new ArrayList<>(), columns = new ArrayList<>();
            for (ResultSet r = m.getTables(null, "public", "jdbc_t", null); r.next(); ) tables.add(r.getString("TABLE_NAME"));
            for (ResultSet r = m.getColumns(null, "public", "jdbc_t", null); r.next(); ) columns.add(r.getString("COLUMN_NAME"));
            ResultSet k = m.getPrimaryKeys(null, "public", "jdbc_t"); k.next();
            return tables + " " + columns + " " + k.getString("COLUMN_NAME");
        });
        test("metadata of a statement", "text 1", c -> {
            try (PreparedStatement s = c.prepareStatement("select v from jdbc_t where id = ?")) {
                return s.getMetaData().getColumnTypeName(1) + " " + s.getParameterMetaData().getParameterCount();
            }
        });
        test("a function with a cursor", "1,2,", c -> {
            run(c, "create or replace function jdbc_f() returns refcursor language plpgsql as $$ declare r refcursor; begin open r for select generate_series(1, 2); return r; end $$");
            c.setAutoCommit(false);
            String out = "";
            try (CallableStatement s = c.prepareCall("{? = call jdbc_f()}")) {
                s.registerOutParameter(1, Types.REF_CURSOR); s.execute();
                for (ResultSet r = (ResultSet) s.getObject(1); r.next(); ) out += r.getInt(1) + ",";
            }
            c.commit();
            return out;
        });
        test("schema, isolation and read only follow", "pg_catalog serializable on", c -> {
            c.setSchema("pg_catalog"); c.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE); c.setReadOnly(true); c.setAutoCommit(false);
            return c.getSchema() + " " + one(c, "show transaction_isolation") + " " + one(c, "show transaction_read_only");
        });
        test("writing in a read-only connection", "25006", c -> {
            c.setReadOnly(true); c.setAutoCommit(false);
            return state(d -> { run(d, "insert into jdbc_t (v) values ('x')"); return null; }, c);
        });
        test("notifications", "jdbc hello", c -> {
            run(c, "listen jdbc");
            try (Connection other = connect()) { run(other, "notify jdbc, 'hello'"); }
            org.postgresql.PGNotification[] all = c.unwrap(PGConnection.class).getNotifications(5000);
            return all.length == 0 ? "none" : all[0].getName() + " " + all[0].getParameter();
        });
        test("cancel", "57014 1", c -> {
            try (Statement s = c.createStatement()) {
                ScheduledExecutorService e = Executors.newScheduledThreadPool(1);
                e.schedule(() -> { s.cancel(); return null; }, 300, TimeUnit.MILLISECONDS);
                String said = state(d -> s.execute("select pg_sleep(20)"), c);
                e.shutdownNow();
                return said + " " + one(c, "select 1");
            }
        });
        test("a query timeout", "57014 1", c -> {
            try (Statement s = c.createStatement()) {
                s.setQueryTimeout(1);
                return state(d -> s.execute("select pg_sleep(20)"), c) + " " + one(c, "select 1");
            }
        });
        test("an updatable result", "changed|added", c -> {
            run(c, "insert into jdbc_t (v) values ('a')");
            try (Statement s = c.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE)) {
                ResultSet r = s.executeQuery("select id, v from jdbc_t");
                r.first(); r.updateString("v", "changed"); r.updateRow();
                r.moveToInsertRow(); r.updateInt("id", 50); r.updateString("v", "added"); r.insertRow();
            }
            return one(c, "select string_agg(v, '|' order by id) from jdbc_t");
        });
        test("several statements in one", "1 -1 2", c -> {
            try (Statement s = c.createStatement()) {
                s.execute("select 1; update jdbc_t set v = v; select 2");
                ResultSet r = s.getResultSet(); r.next(); String out = r.getString(1);
                s.getMoreResults(); s.getUpdateCount();
                s.getMoreResults(); r = s.getResultSet(); r.next();
                return out + " " + s.getUpdateCount() + " " + r.getString(1);
            }
        });
        test("a notice", "hello", c -> {
            try (Statement s = c.createStatement()) { s.execute("do $$ begin raise notice 'hello'; end $$"); return s.getWarnings().getMessage(); }
        });
        test("an error's place and detail", "23505 jdbc_t_pkey jdbc_t", c -> {
            run(c, "insert into jdbc_t (id) values (7)");
            try { run(c, "insert into jdbc_t (id) values (7)"); return "no error"; } catch (org.postgresql.util.PSQLException e) {
                return e.getSQLState() + " " + e.getServerErrorMessage().getConstraint() + " " + e.getServerErrorMessage().getTable();
            }
        });
        test("an error in a transaction, and after it", "42P01 1", c -> {
            c.setAutoCommit(false);
            String said = state(d -> one(d, "select * from nosuch"), c);
            c.rollback();
            return said + " " + one(c, "select 1");
        });
        test("temporary tables", "1", c -> {
            run(c, "create temporary table jdbc_tmp (x int)", "insert into jdbc_tmp values (1)");
            for (int i = 0; i < 6; i++) one(c, "select x from jdbc_tmp");
            return one(c, "select x from jdbc_tmp");
        });
        test("application name", "jdbc's", c -> { c.setClientInfo("ApplicationName", "jdbc's"); return one(c, "show application_name"); });
        test("isValid, and use of a closed connection", "true 08003", c -> {
            boolean valid = c.isValid(5); Connection d = connect(); d.close();
            return valid + " " + state(e -> one(d, "select 1"), c);
        });
        test("sixty clients at once", "600", c -> {
            ExecutorService e = Executors.newFixedThreadPool(60);
            List<Future<Object>> all = new ArrayList<>();
            for (int i = 0; i < 60; i++) all.add(e.submit(() -> {
                try (Connection d = connect("prepareThreshold", "1")) {
                    d.setAutoCommit(false);
                    for (int k = 0; k < 10; k++) {
                        try (PreparedStatement s = d.prepareStatement("insert into jdbc_t (v) values (?)")) { s.setString(1, "" + k); s.executeUpdate(); }
                        d.commit();
                    }
                }
                return null;
            }));
            for (Future<Object> f : all) f.get();
            e.shutdown();
            return one(c, "select count(*) from jdbc_t");
        });
    }

    /** Two-phase commit, as transaction managers do it. */
    static void defineDistributed() {
        String insert = "insert into jdbc_t (v) values ('x')", count = "select count(*) from jdbc_t";
        test("two phases: seen when it is committed", "0 0 1 1", c -> {
            XAConnection x = distributed();
            Name name = new Name("seen", "1");
            String before = one(c, count);
            one(c, count);
            work(x, name, true, insert);
            String prepared = one(c, count);
            x.getXAResource().commit(name, false);
            String after = one(c, count);
            x.close();
            return before + " " + prepared + " " + after + " " + one(c, count);
        });
        test("two phases: rolled back, before and after it was prepared", "0 0", c -> {
            XAConnection x = distributed();
            Name first = new Name("rolled", "1"), second = new Name("rolled", "2");
            work(x, first, false, insert);
            x.getXAResource().rollback(first);
            String once = one(c, count);
            work(x, second, true, insert);
            x.getXAResource().rollback(second);
            x.close();
            return once + " " + one(c, count);
        });
        test("two phases: one is enough", "1", c -> {
            XAConnection x = distributed();
            Name name = new Name("one", "1");
            work(x, name, false, insert);
            x.getXAResource().commit(name, true);
            x.close();
            return one(c, count);
        });
        test("two phases: branches on two connections at once", "0 2", c -> {
            XAConnection x = distributed(), y = distributed();
            Name first = new Name("branches", "1"), second = new Name("branches", "2");
            work(x, first, false, insert);
            work(y, second, false, insert);
            x.getXAResource().prepare(first);
            y.getXAResource().prepare(second);
            String prepared = one(c, count);
            x.getXAResource().commit(first, false);
            y.getXAResource().commit(second, false);
            x.close();
            y.close();
            return prepared + " " + one(c, count);
        });
        test("two phases: committed by another connection, when the first is gone", "true 0 false 1", c -> {
            Name name = new Name("recovered", "1");
            XAConnection x = distributed();
            work(x, name, true, insert);
            x.close();
            XAConnection y = distributed();
            boolean there = recovers(y.getXAResource(), name);
            String prepared = one(c, count);
            y.getXAResource().commit(name, false);
            boolean still = recovers(y.getXAResource(), name);
            y.close();
            return there + " " + prepared + " " + still + " " + one(c, count);
        });
        test("two phases: a connection that leaves before it prepares", "false 0", c -> {
            Name name = new Name("left", "1");
            XAConnection x = distributed();
            x.getXAResource().start(name, XAResource.TMNOFLAGS);
            run(x.getConnection(), insert);
            x.close();
            XAConnection y = distributed();
            boolean there = recovers(y.getXAResource(), name);
            y.close();
            return there + " " + one(c, count);
        });
        test("two phases: locks are held until the second", "55P03 changed", c -> {
            run(c, "insert into jdbc_t (id, v) values (1, 'old')", "set lock_timeout = '200ms'");
            XAConnection x = distributed();
            Name name = new Name("locks", "1");
            work(x, name, true, "update jdbc_t set v = 'new' where id = 1");
            String said = state(d -> { run(d, "update jdbc_t set v = 'changed' where id = 1"); return null; }, c);
            x.getXAResource().commit(name, false);
            run(c, "update jdbc_t set v = 'changed' where id = 1");
            x.close();
            return said + " " + one(c, "select v from jdbc_t where id = 1");
        });
        test("two phases: a setting made in it stays, rolled back or not", "50ms 50ms", c -> {
            XAConnection x = distributed();
            Name name = new Name("setting", "1");
            work(x, name, true, insert, "set lock_timeout = '50ms'");
            String prepared;
            try (Connection d = x.getConnection()) { prepared = one(d, "show lock_timeout"); }
            x.getXAResource().rollback(name);
            try (Connection d = x.getConnection()) { prepared += " " + one(d, "show lock_timeout"); }
            x.close();
            return prepared;
        });
        test("two phases: statements outside of it, on the same connection", "1 2 3", c -> {
            XAConnection x = distributed();
            String seen = "";
            for (int i = 0; i < 3; i++) {
                Name name = new Name("between", "" + i);
                work(x, name, true, insert);
                x.getXAResource().commit(name, false);
                try (Connection d = x.getConnection()) { seen += one(d, count) + " "; }
            }
            x.close();
            return seen.trim();
        });
        test("two phases: what had temporary tables is not prepared", "error 0 1", c -> {
            XAConnection x = distributed();
            Name name = new Name("temporary", "1"), next = new Name("temporary", "2");
            String said = refused(() -> work(x, name, true, insert, "create temporary table jdbc_tmp (x int)")).equals("no error") ? "prepared" : "error";
            try { x.getXAResource().rollback(name); } catch (XAException e) { }
            String after = one(c, count);
            work(x, next, true, insert);
            x.getXAResource().commit(next, false);
            x.close();
            return said + " " + after + " " + one(c, count);
        });
        test("two phases: a name that is taken, and one that nobody has", "42710 42704 1", c -> {
            XAConnection x = distributed(), y = distributed();
            Name name = new Name("taken", "1");
            work(x, name, true, insert);
            String taken = refused(() -> work(y, name, true, insert)).split(" ")[1];
            x.getXAResource().commit(name, false);
            String unknown = refused(() -> x.getXAResource().rollback(new Name("nobody's", "1"))).split(" ")[1];
            x.close();
            y.close();
            return taken + " " + unknown + " " + one(c, count);
        });
        test("two phases: eight clients, ten times each", "80", c -> {
            ExecutorService e = Executors.newFixedThreadPool(8);
            List<Future<Object>> all = new ArrayList<>();
            for (int i = 0; i < 8; i++) {
                String client = "" + i;
                all.add(e.submit(() -> {
                    XAConnection x = distributed();
                    for (int k = 0; k < 10; k++) {
                        Name name = new Name("many" + client, "" + k);
                        work(x, name, true, insert);
                        x.getXAResource().commit(name, false);
                    }
                    x.close();
                    return null;
                }));
            }
            for (Future<Object> f : all) f.get();
            e.shutdown();
            return one(c, count);
        });
    }
}
