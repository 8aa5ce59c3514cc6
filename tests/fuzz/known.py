"""What the fuzz leaves out or passes over, each with the open bug that is the reason.

An entry goes when its bug is fixed: `python -m tests.fuzz --all --only GROUP` must then find nothing.
"""

from __future__ import annotations

from tests.fuzz.referee import Known

OFF: dict[str, str] = {
    "catalog": "pg_prepared_statements shows pgnear's names; reset_val and source know nothing of startup options",
    "chain": "COMMIT AND CHAIN does not settle a SET: a later ROLLBACK forgets it, and the connection keeps it",
    "copy extended": "the Sync sent along with a COPY FROM STDIN counts as owed though the server ignores it",
    "date style": "only the last SET of DateStyle is replayed, but a SET of one of its parts keeps the other",
    "ddl": "a statement prepared before DDL is prepared anew where PostgreSQL says 0A000",
    "defaults": "connections from before ALTER ROLE or ALTER DATABASE keep the old defaults; so does the greeting",
    "flush": "a Query or FunctionCall behind messages without Sync leaves a batch open for ever",
    "hidden set": "set_config in DO, in functions and by FunctionCall is not seen",
    "pipelined parse": "answers out of order when several batches of one write need nothing of the origin",
    "portal": "see flush",
    "privileged setting": "settings are replayed behind SET ROLE, which may not be allowed to make them: FATAL",
    "query in batch": "see flush",
    "sequence": "nextval does not pin, so lastval and currval see other clients' values",
    "session authorization": "SET or RESET SESSION AUTHORIZATION ends SET ROLE, but the role is replayed",
    "set in batch": "a SET bound and not executed counts; one committed in a batch that fails later does not",
    "shared names": "statements of Parse and of PREPARE do not know each other",
    "startup": "RESET, RESET ALL and DISCARD ALL report and set the server's default, not the startup value",
    "string syntax": "a SET is replayed under another standard_conforming_strings than it was written for",
    "unnamed statement": "a simple Query ends the unnamed statement; pgnear brings it back",
    "unknown custom": "a connection on which a client has set app.x knows app.x, as '', for all later clients",
    "update of pg_settings": "a SET in disguise that is not followed",
}
"""Groups of actions that are off."""

TOLERATED: dict[str, str] = {
    "look:unnamed statement: *": "see the group unnamed statement",
    "look:session: D implicit schemas *": "a connection that ever had a temporary object keeps its pg_temp schema",
    "look:session: D app.*": "see the group unknown custom",
    "* E 08P01 -> E 08P01": "the message about a wrong number of parameters names pgnear's statement",
    "* E 42601 -> E 42P05": "a Parse with a syntax error under a name that is taken: PostgreSQL sees the syntax first",
    "* E 25P02 -> 1": "in a failed transaction a Parse whose statement the connection has succeeds",
    "look:statements: E 26000 -> t": "what follows from that: the name is taken",
    "connection:terminate: E 08P01 -> closed": "Terminate during COPY is no error",
}
"""Signatures of differences that are passed over; * stands for anything."""

OPEN: dict[str, str] = {
    "unnamed-statement-ends-with-a-query": "pgnear brings it back",
    "copy-in-extended": "the first Sync counts as owed: the next answers are mixed up",
    "copy-in-extended-fails": "as copy-in-extended",
    "query-in-batch": "the batch is never closed: later answers are mixed up",
    "function-call-in-batch": "as query-in-batch",
    "pipelined-close-and-parse": "3 1 3 1 Z Z in place of 3 1 Z 3 1 Z",
    "terminate-in-batch": "the client is kept for seconds",
    "terminate-in-copy": "closes without a word",
    "parse-in-failed-transaction": "ParseComplete is made up",
    "parse-with-syntax-error-and-taken-name": "42P05 in place of 42601",
    "statement-name-in-message": "they name pgnear's own",
    "commit-and-chain-settles-a-set": "the SET is forgotten and stays on the connection for the next client",
    "set-bound-and-not-executed": "it counts",
    "set-committed-in-a-batch-that-fails": "it is forgotten and stays on the connection for the next client",
    "set-by-update-of-pg-settings": "it is not followed and stays for the next client",
    "set-config-in-do": "neither: the next client gets them",
    "set-config-by-function-call": "neither: the next client gets it",
    "set-config-in-function": "the next client gets it",
    "temporary-table-in-do": "the next client sees it",
    "advisory-lock-in-do": "it stays, and is other clients'",
    "lastval-is-ones-own": "it tells another client's value",
    "currval-after-others": "whether it is defined depends on the connection",
    "custom-setting-of-another-is-unknown": "it is known and empty",
    "implicit-schemas-of-another": "a connection keeps its own after DISCARD ALL",
    "reset-to-startup-value": "the server's default is set and reported",
    "reset-in-transaction-to-startup-value": "as reset-to-startup-value, and it lasts to the end of the transaction",
    "reset-all-to-startup-values": "as reset-to-startup-value",
    "discard-all-to-startup-values": "as reset-to-startup-value",
    "reset-role-to-startup-role": "as reset-to-startup-value: for a moment the client is the pool's user",
    "date-style-in-two-parts": "only the last SET is replayed",
    "set-under-its-own-string-syntax": "it is replayed under another standard_conforming_strings",
    "privileged-setting-before-set-role": "FATAL 42501: the role is replayed first",
    "session-authorization-ends-role": "the role is replayed",
    "reset-session-authorization-ends-role": "the role is replayed",
    "alter-role-reaches-new-clients": "connections and greeting are from before",
    "alter-database-reaches-new-clients": "connections are from before",
    "execute-what-parse-prepared": "26000",
    "bind-what-prepare-prepared": "26000",
    "prepare-under-a-name-of-parse": "it succeeds",
    "deallocate-by-the-extended-protocol": "26000",
    "deallocate-in-a-transaction": "26000, and the transaction fails",
    "prepared-statements-view": "pgnear's names, and other clients' statements",
    "reset-value-of-startup-settings": "the server's default, session",
    "plan-after-own-ddl": "it is prepared anew unasked",
    "plan-after-anothers-ddl": "it is prepared anew unasked",
}
"""The scripts (in scripts/, each for one promise) that still differ, and how."""


def tolerated() -> list[Known]:
    """`TOLERATED` as the referee takes it."""
    return [(signature, frozenset()) for signature in TOLERATED]
