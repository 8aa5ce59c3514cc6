"""Every error that pgnear itself raises.

An error of pgnear's reads like one of PostgreSQL's: severity, SQLSTATE, message, and where they help a detail and a
hint that names the setting. This is the whole list; nothing else in pgnear makes up a SQLSTATE. Each says when it is
raised and has examples (`examples`): `docs/errors.md` is made from them (`python -m protocol.reference`).

Not here: what an error is and its form on the wire (`responses`).
Source: PostgreSQL documentation, "PostgreSQL Error Codes".
"""

from __future__ import annotations

from protocol.examples import example, examples
from protocol.responses import FrameError, MalformedMessage, NotAStartup, PgError


@example(pool="shop", waited_seconds=5.0, size=20)
@example(pool="shop", waited_seconds=10.0, size=20, absence="the origin cannot be reached: Connection refused")
def pool_timeout(pool: str, waited_seconds: float, size: int, absence: str | None = None) -> PgError:
    """A client waited `pool_wait_timeout` for a free origin connection."""
    return PgError(
        "53300",
        f'no origin connection of pool "{pool}" became free within {waited_seconds:g} s',
        detail=f"There is none: {absence}." if absence else f"All {size} connections are in use.",
        hint="Shorten transactions, or raise pool_size or pool_wait_timeout.",
    )


@example(pool="shop", limit=500)
def queue_full(pool: str, limit: int) -> PgError:
    """As many clients as `max_waiting` wait for an origin connection already."""
    return PgError(
        "53300",
        f'too many clients wait for an origin connection of pool "{pool}"',
        detail=f"{limit} wait already.",
        hint="Try again later; shorten transactions, or raise pool_size or max_waiting.",
    )


@example(pool="shop", expected_seconds=31.4159, limit_seconds=10.0)
@example(pool="shop", expected_seconds=31.4159, limit_seconds=10.0, lowered_to=10)
def queue_too_slow(pool: str, expected_seconds: float, limit_seconds: float, lowered_to: int | None = None) -> PgError:
    """A client would wait for longer than `pool_wait_timeout`, at the pace of the queue or at the best that it may
    have: it is not made to, or not any longer."""
    lowered = f" {lowered_to} connections work at once while the origin is slow (concurrency.adaptive)."
    return PgError(
        "53300",
        f'pool "{pool}" is overloaded: no origin connection is expected to become free in time',
        detail=f"The wait would be about {expected_seconds:.3g} s, and {limit_seconds:g} s is the most that it may be."
        + (lowered if lowered_to is not None else ""),
        hint="Try again later; shorten transactions, or raise pool_size or pool_wait_timeout.",
    )


@example(limit=10000)
def too_many_clients(limit: int) -> PgError:
    """A client connected while `max_client_connections` others were."""
    return PgError(
        "53300",
        "sorry, too many clients already",
        detail=f"{limit} clients are connected.",
        hint="Raise max_client_connections.",
    )


@example(limit=1000)
def too_many_logins(limit: int) -> PgError:
    """A client connected while `max_unauthenticated_connections` others were still logging in."""
    return PgError(
        "53300",
        "too many connections that have not logged in yet",
        detail=f"{limit} logins are under way.",
        hint="Try again; raise max_unauthenticated_connections if this is expected.",
    )


@example(limit=100)
def too_many_from_address(limit: int) -> PgError:
    """A client connected while `max_connections_per_address` connections from its address were open."""
    return PgError(
        "53300",
        "too many connections from this address",
        detail=f"{limit} are open.",
        hint="Close some, or raise max_connections_per_address.",
    )


@example(limit=10)
def too_many_replication_connections(limit: int) -> PgError:
    """A client asked for a replication connection while `max_replication_connections` others had one."""
    return PgError(
        "53300",
        "too many replication connections",
        detail=f"{limit} are passed through.",
        hint="Raise max_replication_connections.",
    )


@example(limit=1000)
def too_many_statements(limit: int) -> PgError:
    """A client prepared one statement more than `max_client_statements`."""
    return PgError(
        "53400",
        f"this client has {limit} prepared statements, as many as it may have",
        hint="DEALLOCATE some, or raise max_client_statements.",
    )


@example(limit=134217728)
def statements_too_large(limit: int) -> PgError:
    """A client's prepared statements together are larger than a message may be (`max_message_bytes`)."""
    return PgError(
        "53400",
        f"this client's prepared statements have more than {limit} bytes, as many as they may have together",
        hint="DEALLOCATE some, or raise max_message_bytes.",
    )


@example(kind=ord("Q"), length=1073741824, limit=268435456)
def message_too_large(kind: int, length: int, limit: int) -> FrameError:
    """A message declares more than `max_message_bytes`. During login the limit is pgnear's own."""
    return FrameError(
        "54000",
        f"a message of type '{_printable(kind)}' declares {length} bytes, more than the {limit} that are allowed",
        hint="Raise max_message_bytes, or send the value in parts (COPY).",
    )


@example(reason="the connection was reset")
def origin_lost(reason: str) -> PgError:
    """The origin closed or broke the connection that worked for this client. The client's connection ends too."""
    return PgError(
        "08006",
        "the connection to the origin database was lost",
        detail=f"{reason[:1].upper()}{reason[1:]}. A query that was under way may or may not have taken effect.",
        hint="Reconnect and check before you repeat a write.",
    )


ORIGIN_UNREACHABLE = "the origin database cannot be reached: "


@examples(
    "reason",
    "Connection refused",
    "no answer within 10 s (origin_connect_timeout)",
    "no answer within 10 s",
    "it does not offer TLS, and sslmode is verify-full",
    "sslrootcert: /etc/pgnear/root.pem cannot be read: No such file or directory",
    "it sent plaintext behind its answer to SSLRequest",
    "it does not speak PostgreSQL's protocol",
    "the connection broke during login: the peer closed the connection",
    "unexpected message of type 'D' during login",
    'it refuses pgnear\'s login: password authentication failed for user "pooler"',
    "it asks for a cleartext password on an unencrypted connection",
    "it asks for authentication method 7, which pgnear does not know",
    "it offers only SCRAM-SHA-512 authentication",
    "SCRAM failed: The server signature doesn't match.",
    "it said AuthenticationOk without finishing SCRAM",
    "it asks for 10000000 rounds of SCRAM; 1000000 are the most",
    "it breaks the protocol: a message ended before its last field",
    "what it said behind its login made no sense",
    "an internal error of pgnear; see its log",
    "it has no address",
    "it is not what target_session_attrs=read-write asks for",
    "it refuses pgnear's login: password authentication failed",
    "db1:5432: Connection refused; db2:5432: Connection refused",
)
def origin_unreachable(reason: str) -> PgError:
    """A new origin connection could not be opened, encrypted or logged in."""
    return PgError("08001", ORIGIN_UNREACHABLE + reason)


@example(reason="the origin database cannot be reached: Connection refused", failures=5, retry_in_seconds=1.234)
@example(reason="the origin database cannot be reached: Connection refused", failures=6, retry_in_seconds=0.0)
@example(
    reason="the origin database cannot be reached: no answer within 10 s (origin_connect_timeout)",
    failures=1,
    retry_in_seconds=0.8,
    silent_seconds=15.03,
)
def origin_paused(reason: str, failures: int, retry_in_seconds: float, silent_seconds: float = 0.0) -> PgError:
    """The origin could not be reached so often that it is left alone for a while, or it is frozen: nothing comes on its
    connections, and no new one gets through. See [breaker]."""
    again = f"the next attempt is in {retry_in_seconds:.1f} s" if retry_in_seconds else "an attempt is under way"
    failed = f"{failures} attempt{'s in a row have' if failures > 1 else ' has'} failed."
    silence = f"Nothing has come on its connections for {silent_seconds:.1f} s (breaker.silence). "
    return PgError(
        "57P03",
        f"{reason}; {again}",
        detail=(silence if silent_seconds else "") + failed,
        hint="Try again then.",
    )


@example(cause=PgError("22023", 'role "reporting" does not exist'))
def settings_not_restored(cause: PgError) -> PgError:
    """A connection refused a setting that this client had made on another one; the SQLSTATE is the origin's. The
    client's connection ends."""
    return PgError(
        cause.sqlstate,
        f"pgnear could not restore this session's settings: {cause.message}",
        detail=cause.detail,
        hint="Reconnect; the setting or role may no longer exist.",
    )


@example(user="app")
def auth_failed(user: str) -> PgError:
    """The password is wrong, or there is no such user: a client is not told which."""
    return PgError("28P01", f'password authentication failed for user "{user}"')


@example()
def channel_binding_downgraded() -> PgError:
    """The client could bind SCRAM to the TLS channel and was told that pgnear cannot: somebody changed the offer."""
    return PgError(
        "28000",
        "SCRAM channel binding negotiation error",
        detail="The client supports SCRAM channel binding but thinks the server does not.  "
        "However, this server does support channel binding.",
    )


@example(detail='Expected attribute "n" but found "\'x\'".')
def malformed_scram(detail: str) -> PgError:
    """A client's SCRAM message cannot be read; the words are PostgreSQL's."""
    return PgError("08P01", "malformed SCRAM message", detail=detail)


@example()
def scram_nonce_mismatch() -> PgError:
    """A client's second SCRAM message is not of the exchange that its first one began."""
    return PgError("08P01", "invalid SCRAM response", detail="Nonce does not match.")


@examples(
    "message",
    "client uses authorization identity, but it is not supported",
    "client requires an unsupported SCRAM extension",
)
def scram_unsupported(message: str) -> PgError:
    """A client's SCRAM message asks for what PostgreSQL does not do either."""
    return PgError("0A000", message)


@example(user="reporting")
def console_not_allowed(user: str) -> PgError:
    """A client asked for the database pgnear, and `admin_users` does not name it."""
    return PgError("42501", f'user "{user}" may not use the console of pgnear', hint="Name the user in admin_users.")


@example(pid="4194304")
def unknown_client(pid: str) -> PgError:
    """KILL_CLIENT was given what is no client's process id."""
    return PgError("42704", f'there is no client with the process id "{pid}"', hint="SHOW CLIENTS has them.")


@example(beginning="select 1")
def unknown_command(beginning: str) -> PgError:
    """The console was told something that is none of its commands."""
    return PgError(
        "42601",
        f'unknown console command "{beginning}"',
        hint="SHOW HELP lists the commands. There are no transactions: use autocommit.",
    )


@example()
def cache_is_off() -> PgError:
    """The console was asked about entries of a cache that does not exist."""
    return PgError("55000", "the cache is off", hint="Set cache.enabled.")


@example(database="shop")
def catalog_unknown(database: str) -> PgError:
    """The console was given a table's name while the origin's catalog had not been read: it cannot be reached, or DDL
    has just passed."""
    return PgError(
        "55000",
        f'the catalog of database "{database}" is not known now',
        hint="Try again in a second, or PURGE ALL.",
    )


@example(database="shop", seconds=300.0)
def paused(database: str, seconds: float) -> PgError:
    """A query waited `pause_timeout` for a database that an operator has paused."""
    return PgError(
        "57P03",
        f'database "{database}" is paused',
        detail=f"It did not go on within {seconds:g} s.",
        hint="RESUME on the console lets it go on; see pause_timeout.",
    )


@example(database="shop")
def disabled(database: str) -> PgError:
    """A client asked for a database that takes no new clients (DISABLE on the console)."""
    return PgError(
        "57P03", f'database "{database}" takes no new clients', hint="ENABLE on the console lets them in again."
    )


@example(problems="pgnear.toml line 3: pool_size: input should be greater than or equal to 1")
def cannot_reload(problems: str) -> PgError:
    """RELOAD, and the configuration cannot be used; the old one still holds."""
    return PgError(
        "F0000", "the configuration was not reloaded", detail=f"{problems}.", hint="Correct it, and RELOAD again."
    )


@example(workers=[1])
@example(workers=[1, 2])
def workers_silent(workers: list[int]) -> PgError:
    """The console has asked all worker processes, and some have not answered in time or are not there."""
    many = len(workers) > 1
    named = f"workers {', '.join(map(str, workers))} do" if many else f"worker {workers[0]} does"
    return PgError(
        "58000",
        f"{named} not answer",
        detail="The others have done what they were told.",
        hint="Repeat the command. A worker that was lost has the line worker_ended in the log, and is started again.",
    )


@example(cause=PgError("55000", 'the catalog of database "shop" is not known now'), workers=[1])
def failed_at_workers(cause: PgError, workers: list[int]) -> PgError:
    """A command of the console has failed at some worker processes, and not at the others. It has the SQLSTATE and the
    message of the failure."""
    named = f"Workers {', '.join(map(str, workers))} have" if len(workers) > 1 else f"Worker {workers[0]} has"
    detail = f"{named} failed; the others have done what they were told."
    return PgError(
        cause.sqlstate, cause.message, detail=f"{cause.detail} {detail}" if cause.detail else detail, hint=cause.hint
    )


@example(name="public.odrers")
def unknown_table(name: str) -> PgError:
    """PURGE TABLE names a table that no database has."""
    return PgError("42P01", f'relation "{name}" does not exist')


@example(name="catalog", known=["default", "catalogue"])
def unknown_namespace(name: str, known: list[str]) -> PgError:
    """PURGE NAMESPACE names none of the cache's policies."""
    return PgError("42704", f'namespace "{name}" does not exist', hint=f"There is {', '.join(known)}.")


@example(name="c1")
def undefined_portal(name: str) -> PgError:
    """Execute or Describe on the console, of a portal that was not bound."""
    return PgError("34000", f'portal "{name}" does not exist')


@example(name="shpo")
def unknown_database(name: str) -> PgError:
    """The startup packet names a database that pgnear does not serve; said only after authentication."""
    return PgError(
        "3D000",
        f'database "{name}" does not exist',
        hint="pgnear serves the origin URL's database and those under [databases].",
    )


@example()
def no_user() -> PgError:
    """The startup packet names no user."""
    return PgError("28000", "no PostgreSQL user name specified in startup packet")


@example()
def tls_required() -> PgError:
    """`tls = "require"`, and the client did not encrypt."""
    return PgError(
        "28000",
        "this pgnear accepts only encrypted connections",
        hint="Connect with sslmode=require or stronger.",
    )


@examples(
    "message",
    "invalid startup packet layout: expected terminator as last byte",
    "SSLRequest on a connection that is encrypted already",
    "too many encryption requests",
    "not a startup packet; TLS cannot be traced: use sslmode=disable",
    "expected a SASL response, got message type 'Q'",
    "invalid string in message",
    "insufficient data left in message",
    "invalid message format",
    "a SASLInitialResponse without SCRAM's first message",
    "client selected an invalid SASL authentication mechanism",
    "invalid frontend message type 33",
    "a message ended before its last field",
    "messages were sent behind an unfinished COPY",
    "non-printable characters in SCRAM nonce",
    "unexpected SCRAM channel-binding attribute in client-final-message",
    'unsupported SCRAM channel-binding type "tls-unique"',
    "the console takes no parameters",
    "the console does not take messages of type 'd'",
)
def protocol_violation(message: str) -> PgError:
    """A client broke the protocol; the message says how. Its connection ends."""
    return PgError("08P01", message)


@examples(
    "message",
    "invalid length of startup packet",
    "invalid length of startup packet: 20000",
    "invalid length of query cancel packet",
    "received direct SSL connection request without ALPN protocol negotiation extension",
)
def not_a_startup(message: str) -> NotAStartup:
    """Bytes that are no startup packet. Only the log says so; the connection ends without a word, as PostgreSQL's."""
    return NotAStartup("08P01", message)


@example(kind=ord("Q"), length=3)
def invalid_message_length(kind: int, length: int) -> FrameError:
    """A message's length field is under the 4 bytes that it has itself."""
    return FrameError("08P01", f"invalid message length {length} in a message of type '{_printable(kind)}'")


@example(name="Bind", reason="parameters: stream read less than specified amount, expected 8, found 3")
def malformed_message(name: str, reason: str) -> MalformedMessage:
    """A message's fields are not those of its type. Traces say so; traffic does not look that closely."""
    return MalformedMessage("08P01", f"malformed {name}: {reason}")


@example(kind=b"!", from_frontend=True)
def unknown_message(kind: bytes, from_frontend: bool) -> MalformedMessage:
    """A message's type is none that this side may send. Only traces say so."""
    name = _printable(kind[0]) if kind else ""
    return MalformedMessage("08P01", f"invalid {'frontend' if from_frontend else 'backend'} message type '{name}'")


@example()
def plaintext_after_ssl_request() -> PgError:
    """Bytes came behind a request for encryption, before its answer."""
    return PgError(
        "08P01",
        "received unencrypted data after SSL request",
        detail="This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
    )


@example()
def startup_encoding() -> PgError:
    """A name or value in the startup packet is not UTF-8."""
    return PgError("22021", 'invalid byte sequence for encoding "UTF8" in startup packet')


@example(word="-x")
def unknown_startup_option(word: str) -> PgError:
    """`options` in the startup packet holds something else than `-c name=value` and `--name=value`."""
    return PgError("42601", f"invalid command-line argument for server process: {word}")


@example(assignment="statement_timeout")
def startup_option_without_value(assignment: str) -> PgError:
    """`options` in the startup packet names a setting without a value."""
    return PgError("42601", f"-c {assignment} requires a value")


@example(major=2, minor=0)
def unsupported_protocol(major: int, minor: int) -> PgError:
    """The client speaks another major version of the protocol."""
    return PgError("0A000", f"unsupported frontend protocol {major}.{minor}: pgnear supports 3.0 to 3.2")


@example()
def replication_disabled() -> PgError:
    """A client asked for a replication connection while `max_replication_connections` is 0."""
    return PgError(
        "0A000",
        "this pgnear passes no replication connections through",
        hint="Set max_replication_connections, or connect to the origin database directly.",
    )


@example(seconds=15.0)
def login_timeout(seconds: float) -> PgError:
    """A client did not finish its login within `client_login_timeout`."""
    return PgError("57014", f"login did not finish within {seconds:g} s", hint="See client_login_timeout.")


@example(seconds=30.0)
def query_timeout(seconds: float) -> PgError:
    """The origin worked on a query for longer than `query_timeout`, and was asked to cancel it. Where it does not obey
    within `cancel_wait_timeout`, the client's connection ends."""
    return PgError(
        "57014",
        "canceling statement due to query_timeout",
        detail=f"The origin worked on it for more than {seconds:g} s.",
        hint="Raise query_timeout, in general or in an [[override]] for this user.",
    )


@example(seconds=60.0)
def transaction_timeout(seconds: float) -> PgError:
    """A transaction was open for longer than `transaction_timeout`. It is rolled back, the client's connection ends."""
    return PgError(
        "25P04",
        "terminating connection due to transaction_timeout",
        detail=f"The transaction was open for more than {seconds:g} s.",
        hint="Raise transaction_timeout, in general or in an [[override]] for this user.",
    )


@example(seconds=60.0)
def idle_in_transaction_timeout(seconds: float) -> PgError:
    """A client said nothing inside a transaction for longer than `idle_in_transaction_timeout`. The transaction is
    rolled back, the client's connection ends."""
    return PgError(
        "25P03",
        "terminating connection due to idle_in_transaction_timeout",
        detail=f"The client said nothing inside a transaction for more than {seconds:g} s.",
        hint="Raise idle_in_transaction_timeout, in general or in an [[override]] for this user.",
    )


@example(seconds=3600.0)
def client_idle_timeout(seconds: float) -> PgError:
    """A client said nothing outside a transaction for longer than `client_idle_timeout`. Its connection ends."""
    return PgError(
        "57P05",
        "terminating connection due to client_idle_timeout",
        detail=f"The client said nothing for more than {seconds:g} s.",
        hint="Raise client_idle_timeout, in general or in an [[override]] for this user.",
    )


@example()
def query_canceled() -> PgError:
    """A cancel came while the query still waited for an origin connection, or a client cancels itself by SQL."""
    return PgError("57014", "canceling statement due to user request")


@example(function="pg_cancel_backend", superuser=False)
@example(function="pg_cancel_backend", superuser=True)
@example(function="pg_terminate_backend", superuser=False)
@example(function="pg_terminate_backend", superuser=True)
def signal_denied(function: str, *, superuser: bool) -> PgError:
    """`pg_cancel_backend` or `pg_terminate_backend` of another client that the user has no right to."""
    cancels = function == "pg_cancel_backend"
    verb = "cancel" if cancels else "terminate"
    if superuser:
        things = "queries" if cancels else "processes"
        roles = f"roles with the SUPERUSER attribute may {verb} {things} of roles with the SUPERUSER attribute"
    else:
        whose = "query is being canceled" if cancels else "process is being terminated"
        roles = (
            f"roles with privileges of the role whose {whose} or with privileges of the "
            f'"pg_signal_backend" role may {verb} this {"query" if cancels else "process"}'
        )
    return PgError(
        "42501",
        f"permission denied to {verb} {'query' if cancels else 'process'}",
        detail=f"Only {roles}.",
        routine=function,
    )


@example()
def admin_shutdown() -> PgError:
    """pgnear is shutting down: new clients are turned away, and those that stayed too long are disconnected."""
    return PgError("57P01", "terminating connection due to administrator command")


@example(seconds=5.0)
def drain_timeout(seconds: float) -> PgError:
    """pgnear is shutting down, and what a client had under way did not come to its end within `drain_timeout`."""
    return PgError(
        "57P01",
        "terminating connection due to administrator command",
        detail=f"What was under way did not finish within {seconds:g} s (drain_timeout).",
    )


@example(name="s1")
def duplicate_prepared_statement(name: str) -> PgError:
    """Parse with the name of a statement that the client has prepared already."""
    return PgError("42P05", f'prepared statement "{name}" already exists')


@example(name="s1")
@example(name="")
def undefined_prepared_statement(name: str) -> PgError:
    """Bind or Describe of a statement that the client has not prepared."""
    if not name:
        return PgError("26000", "unnamed prepared statement does not exist")
    return PgError("26000", f'prepared statement "{name}" does not exist')


@example()
def outdated_plan() -> PgError:
    """DDL has changed the rows of a prepared statement since its client was told what they are."""
    return PgError("0A000", "cached plan must not change result type", routine="RevalidateCachedQuery")


@example()
def no_transaction_blocks() -> PgError:
    """With pooling = "statement" a connection goes back after each statement."""
    return PgError(
        "0A000",
        "transaction blocks are not allowed in statement pooling mode",
        hint='Set pooling = "transaction" for this user or database.',
    )


@example(reason="advisory lock")
def pinned_on_replica(reason: str) -> PgError:
    """A READ ONLY transaction on a replica left state that ties its session to that connection."""
    return PgError(
        "0A000",
        f"a READ ONLY transaction on a replica left what its session would have to stay there for: {reason}",
        hint="Do that outside READ ONLY transactions, or leave read_only_transactions at never.",
    )


@example()
def internal_error() -> PgError:
    """A bug in pgnear; it costs one client its connection."""
    return PgError("XX000", "internal error of pgnear; its log says more")


def _printable(kind: int) -> str:
    return chr(kind) if 32 <= kind < 127 else f"\\x{kind:02x}"
