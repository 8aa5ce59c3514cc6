"""Which of an origin's hosts a new connection goes to: in what order they are tried, and which one will do.

Lives here: the walk over hosts and addresses, and libpq's target_session_attrs. Not here: connecting to one place
(`connect`), what becomes of connections whose server changes its role (`demotion`). Names are resolved anew
for each connection. Source: PostgreSQL documentation, "Connection Strings", section "Specifying Multiple Hosts".
"""

from __future__ import annotations

import random
import socket
import time

import trio

from config import Target
from pooler.ceremony.connect import Connected, LoginRefused, ask, connect_to, text_row
from pooler.logs import get_logger
from pooler.reactor import Reactor
from pooler.roles import fits
from pooler.transport import TransportClosed
from protocol import errors
from protocol.responses import PgError

log = get_logger(__name__)

AVOID_SECONDS = 30.0
"""So long a host that failed is tried behind the others."""


class Failures:
    """When hosts failed last, (host, port) -> monotonic seconds. There are as many as the configuration names."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, int], float] = {}

    def note(self, target: Target, now: float) -> None:
        self._at[target.host, target.port] = now

    def forget(self, target: Target) -> None:
        self._at.pop((target.host, target.port), None)

    def order(self, targets: list[Target], now: float) -> list[Target]:
        """`targets` as they are, but those that failed lately last."""
        return sorted(targets, key=lambda each: now - self._at.get((each.host, each.port), -1e9) < AVOID_SECONDS)


_failures = Failures()


async def connect(
    target: Target, reactor: Reactor, parameters: dict[str, str] | None = None, *, timeout: float
) -> Connected:
    """A connection to the first of the target's hosts that can be reached and is what `target_session_attrs` wants.

    Args:
      timeout: seconds, for each host, as libpq's connect_timeout.

    Raises:
      PgError: as `connect_to` does where there is one host; 08001 with what was wrong with each where there are more
        (LoginRefused where it was that with one of them).
      trio.TooSlowError: there is one host, and it did not answer in time.
    """
    if not target.picky:
        with trio.fail_after(timeout):
            return await connect_to(target, reactor, parameters)
    wishes = ("standby", "any") if target.session_attrs == "prefer-standby" else (target.session_attrs,)
    problems: dict[str, str] = {}
    refused = False  # by a host that thinks the credentials are wrong: newer ones may help
    for wish in wishes:
        hosts = target.each()
        if target.load_balance:
            random.shuffle(hosts)
        for host in _failures.order(hosts, time.monotonic()):
            try:
                connected = await _connect_within(host, wish, reactor, parameters, timeout)
            except PgError as error:
                _failures.note(host, time.monotonic())
                refused |= isinstance(error, LoginRefused)
                problems[host.place] = error.message.removeprefix(errors.ORIGIN_UNREACHABLE)
                log.info("origin_host_passed_over", host=host.place, wanted=wish, reason=error.message)
            else:
                _failures.forget(host)
                return connected
    failure = errors.origin_unreachable("; ".join(f"{place}: {problem}" for place, problem in problems.items()))
    raise LoginRefused(failure.sqlstate, failure.message) if refused else failure


async def find_standby(target: Target, reactor: Reactor, *, timeout: float) -> Target | None:
    """The first of the target's hosts that is a standby, tried by logging in; None where none is, for any reason.

    Args:
      timeout: seconds, for each host.
    """
    for host in target.each():
        try:
            connected = await _connect_within(host, "standby", reactor, None, timeout)
        except PgError:
            continue
        connected.transport.close()
        _failures.forget(host)
        return host
    return None


async def _connect_within(
    host: Target, wish: str, reactor: Reactor, parameters: dict[str, str] | None, timeout: float
) -> Connected:
    """A connection to one host, at whichever of its addresses has what is wished for."""
    addresses = [host] if wish == "any" else await _addresses(host)
    if host.load_balance:
        random.shuffle(addresses)
    problem = errors.origin_unreachable("it has no address")
    with trio.move_on_after(timeout):
        for address in addresses:
            connected = None
            with trio.move_on_after(timeout / len(addresses)):
                try:
                    connected = await connect_to(address, reactor, parameters)
                    if await _is(connected, wish):
                        return connected
                    problem = errors.origin_unreachable(f"it is not what target_session_attrs={wish} asks for")
                except PgError as error:
                    problem = error
                except TransportClosed as error:
                    problem = errors.origin_unreachable(str(error))
                except BaseException:
                    if connected is not None:
                        connected.transport.close()
                    raise
                if connected is not None:
                    connected.transport.close()
                continue
            problem = errors.origin_unreachable(f"no answer within {timeout / len(addresses):g} s")
        raise problem
    raise errors.origin_unreachable(f"no answer within {timeout:g} s (origin_connect_timeout)")


async def _addresses(host: Target) -> list[Target]:
    """The host at each of its addresses: behind one name there may be servers in different roles."""
    if host.host.startswith("/"):
        return [host]
    try:
        found = await trio.socket.getaddrinfo(host.host, host.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise errors.origin_unreachable(error.strerror or str(error)) from None
    return [host.at(address) for address in dict.fromkeys(str(entry[4][0]) for entry in found)]


async def _is(connected: Connected, wish: str) -> bool:
    """Whether the server at the other end has what is wished for."""
    verdict = fits(connected.parameters, wish)
    if verdict is not None:
        return verdict
    if wish in ("primary", "standby"):
        (standby,) = text_row(await ask(connected.transport, "SELECT pg_catalog.pg_is_in_recovery()"), 1)
        return (standby == "t") == (wish == "standby")
    (reads_only,) = text_row(await ask(connected.transport, "SHOW transaction_read_only"), 1)
    return (reads_only == "on") == (wish == "read-only")
