"""What is fuzzed. A target takes bytes; it raises where the code under test did what it must not.

Not here: how the bytes are found (`mutation`, or atheris). Typed errors of the protocol (`PgError`) are what hostile
bytes should come to, so targets swallow them; anything else passes and is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from protocol import framing, messages, pgoutput, responses, startup
from protocol.auth import OriginAuthenticator, ScramServer, ScramVerifier
from protocol.entry import PASSWORD_FRAME_LIMIT, Entry, Step
from protocol.framing import FrameReader
from protocol.responses import MalformedMessage, PgError
from tests.fuzz_protocol.machine import Treadmill, play

Target = Callable[[bytes], None]

LIMIT = 1 << 16


def split(data: bytes, parts: int) -> list[bytes]:
    """`data` in up to `parts` pieces, of lengths that its first bytes say."""
    pieces = []
    for _ in range(parts - 1):
        if len(data) < 2:
            break
        size = data[0]
        pieces.append(data[1 : 1 + size])
        data = data[1 + size :]
    return [*pieces, data]


def frames(data: bytes) -> None:
    """Any split of a stream gives the same frames, or the same refusal; nothing is kept beyond a frame's limit."""
    step = data[0] + 1 if data else 1
    whole, parts = _frames_of(data, len(data) or 1), _frames_of(data, step)
    assert whole == parts, (whole, parts)
    for kind, body in whole[0]:
        responses.parse_fields(body)
        again = PgError.from_payload(body).response()
        assert framing.frame_end(again, 0, 1 << 30) == len(again)
        assert len(PgError.from_payload(body).sqlstate) == 5
        for read in (framing.parameter_status, framing.data_row):
            try:
                read(body)
            except MalformedMessage:
                pass
        _decoded(bytes([kind]), body)


def _frames_of(data: bytes, step: int) -> tuple[list[tuple[int, bytes]], str]:
    reader = FrameReader(LIMIT)
    found: list[tuple[int, bytes]] = []
    try:
        for position in range(0, len(data), step):
            reader.feed(data[position : position + step])
            while (frame := reader.next()) is not None:
                found.append(frame)
            assert len(reader.rest) <= LIMIT + step + 5
    except PgError as error:
        return found, error.message
    return found, ""


def _decoded(kind: bytes, body: bytes) -> None:
    """The catalogue reads a message, or says that it cannot."""
    for from_frontend in (True, False):
        try:
            messages.decode(kind, body, from_frontend)
        except MalformedMessage:
            pass


def startups(data: bytes) -> None:
    try:
        request = startup.parse_startup(data)
    except PgError:
        request = None
    if isinstance(request, startup.StartupMessage):
        assert all("\0" not in text for pair in request.parameters.items() for text in pair)
        try:
            startup.parse_options(request.parameters.get("options", ""))
        except PgError:
            pass
    try:
        messages.decode_startup(data)
    except MalformedMessage:
        pass


def entries(data: bytes) -> None:
    """The whole way in, in pieces: nobody gets in without the password, and nothing is kept beyond a message."""
    offers_tls, step, data = len(data) % 2 == 0, data[0] % 64 + 1 if data else 1, data[1:]
    entry = Entry(offers_tls)
    for position in range(0, len(data), step):
        try:
            entry.feed(data[position : position + step], lambda _request: ScramServer((_VERIFIER,), "user", None))
        except PgError:
            return
        assert len(entry.rest) <= PASSWORD_FRAME_LIMIT + step
        if entry.step is Step.TLS:
            assert offers_tls
            entry.encrypted()
        elif entry.step is Step.CANCEL:
            return
        assert entry.step in (Step.PACKET, Step.PROOF), "somebody got in without the password"


_VERIFIER = ScramVerifier.from_password("right")


def scram_server(data: bytes) -> None:
    """A client that does not know the password never gets in."""
    first, second = [*split(data, 2), b""][:2]
    server = ScramServer((_VERIFIER,) if len(data) % 2 else (), "user", b"binding" if len(data) % 3 else None)
    try:
        _, done = server.feed(first)
        assert not done
        _, done = server.feed(second)
    except PgError:
        return
    raise AssertionError("somebody got in without the password")


def origin_login(data: bytes) -> None:
    """An origin that does not know the password is never believed after it has begun SCRAM."""
    login = OriginAuthenticator("user", "secret", channel_binding=None, cleartext_allowed=False)
    sent = b""
    for message in split(data, 5):
        try:
            sent += login.feed(message) or b""
        except PgError:
            break
    assert b"secret" not in sent


def changes(data: bytes) -> None:
    """The stream of logical replication: whatever it holds, in bounded memory."""
    reader = pgoutput.CopyFrames()
    transactions = pgoutput.Transactions(10)
    step = data[0] + 1 if data else 1
    try:
        for position in range(1, len(data), step):
            for _, body in reader.feed(data[position : position + step]):
                _one_change(transactions, body)
    except PgError:
        pass
    _one_change(pgoutput.Transactions(10), data)
    for streamed in (False, True):
        try:
            pgoutput.decode(data, streamed=streamed)
        except PgError:
            pass


def _one_change(transactions: pgoutput.Transactions, body: bytes) -> None:
    try:
        pgoutput.position_of(body)
    except PgError:
        pass
    try:
        transactions.read(body)
    except PgError:
        pass


TARGETS: dict[str, Target] = {
    "frames": frames,
    "startups": startups,
    "entries": entries,
    "scram_server": scram_server,
    "origin_login": origin_login,
    "changes": changes,
    "machine": play,
}

AGAIN: dict[str, tuple[Callable[[bytes], Callable[[], object]], ...]] = {
    name: (partial(partial, target),) for name, target in TARGETS.items()
}
"""For each target, what an input can be played by over and over without leaving anything behind."""
AGAIN["machine"] += (lambda data: Treadmill(data).round,)
