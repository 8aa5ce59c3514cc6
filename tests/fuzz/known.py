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
    "terminate-in-copy": "closes without a word",
    "parse-with-syntax-error-and-taken-name": "42P05 in place of 42601",
    "currval-after-others": "whether it is defined depends on the connection",
    "implicit-schemas-of-another": "a connection keeps its own, emptied",
    "alter-role-leaves-old-clients": "they see the new defaults too",
    "custom-setting-of-another-is-unknown": "it is known and empty",
    "alter-role-reaches-new-clients": "connections and greeting are from before",
    "alter-database-reaches-new-clients": "connections are from before",
    "prepared-statements-view": "pgnear's names, and other clients' statements",
    "reset-value-of-startup-settings": "the server's default, session",
}
"""The scripts (in scripts/, each for one promise) that still differ, and how."""


def tolerated() -> list[Known]:
    """`TOLERATED` as the referee takes it."""
    return [(signature, frozenset()) for signature in TOLERATED]
