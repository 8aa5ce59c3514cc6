"""RELOAD and SIGHUP: the configuration is read anew, and what can change in a running process does.

A configuration with anything wrong in it changes nothing. What cannot change is named, and stays as it is until a
restart; `Service.config` says what holds. Not here: how a pool comes to new credentials (`rotation`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import trio
from pydantic import BaseModel

from config import Config, ConfigError
from pooler import logs
from pooler.ceremony import supervisor
from pooler.logs import get_logger
from protocol import errors

if TYPE_CHECKING:
    from pooler.service import Service

log = get_logger(__name__)

RESTART = (
    "listen", "http", "reuse_port", "workers", "replica", "session_functions", "cache.enabled", "cache.max_bytes",
    "cache.invalidation", "cache.publication", "cache.ttl_without_stream", "cache.notify_channel",
    "cache.max_advice_shapes",
)  # fmt: skip
"""Settings that only a restart changes. Databases that come or go need one, too."""

CHANGED, NEEDS_RESTART, KEPT = "changed", "needs a restart", "kept"


async def reload(service: Service) -> list[tuple[str, str]]:
    """Read the configuration and follow it; (setting, what became of it) of each that differs.

    Raises:
      PgError: it cannot be used; nothing has changed.
    """
    if service.load is None:
        raise errors.cannot_reload("this pgnear was started without a configuration to read again")
    async with service.reloading:
        supervisor.reloading()
        try:
            whole = service.peers.whole if service.peers is not None else None
            wanted = await trio.to_thread.run_sync(service.load)
            if service.peers is not None and whole is not None and service.peers.whole is not None:
                service.peers.whole, _ = _what_can_change(whole, service.peers.whole)
            return await _reload(service, wanted)
        except ConfigError as error:
            problems = [str(problem) for problem in error.problems]
            log.error("reload_failed", problems=problems)
            service.stats.reload_failures += 1
            raise errors.cannot_reload("\n".join(problems)) from None
        finally:
            supervisor.ready()


async def _reload(service: Service, wanted: Config) -> list[tuple[str, str]]:
    old = service.config
    config, refused = _what_can_change(old, wanted)
    outcomes = [(name, CHANGED) for name in _differences("", old, config)]
    outcomes += [(name, NEEDS_RESTART) for name in refused]
    service.adopt(config)
    logs.configure(config.log.format, config.log.level)
    if problem := service.certificate.reload(config):
        outcomes.append(("tls_cert_file", f"{KEPT}: {problem}"))
    await _change_targets(service, config)
    for name, rotation in service.rotations.items():
        if rotation.problem is not None:
            outcomes.append((f"credentials of {name}", f"{KEPT}: {rotation.problem}"))
    log.info(
        "reloaded",
        changed=[name for name, outcome in outcomes if outcome == CHANGED],
        needs_restart=refused,
        kept=[name for name, outcome in outcomes if outcome.startswith(KEPT)],
    )
    service.stats.reloads += 1
    return outcomes


async def _change_targets(service: Service, config: Config) -> None:
    sources = config.password_sources()
    async with trio.open_nursery() as nursery:
        for name, target in config.targets().items():
            pool, rotation = service.pools[name], service.rotations[name]
            pool.target = replace(pool.target, pool_size=target.pool_size)  # which is no reason to connect anew
            nursery.start_soon(rotation.change, target, sources.get(name))


def _what_can_change(old: Config, wanted: Config) -> tuple[Config, list[str]]:
    """`wanted`, but for what needs a restart, which is as in `old`; and the names of that."""
    refused = [name for name in RESTART if _value(old, name) != _value(wanted, name)]
    top = {name: getattr(old, name) for name in refused if "." not in name}
    cache = {name.partition(".")[2]: _value(old, name) for name in refused if "." in name}
    databases = {name: each for name, each in wanted.databases.items() if name in old.databases}
    if wanted.databases.keys() != old.databases.keys():
        refused += [f"databases.{name}" for name in sorted(wanted.databases.keys() ^ old.databases.keys())]
        databases |= {name: each for name, each in old.databases.items() if name not in databases}
    top["databases"] = databases
    if wanted.top_database() != old.top_database():
        refused.append("origin")
        top |= {name: getattr(old, name) for name in ("origin", "password_file", "password_command")}
    budgets = {policy.name: policy.max_bytes for policy in old.cache.policy}
    refused += [
        f"cache.policy.{policy.name}.max_bytes"
        for policy in wanted.cache.policy
        if policy.name in budgets and policy.max_bytes != budgets[policy.name]
    ]
    return wanted.model_copy(update={**top, "cache": wanted.cache.model_copy(update=cache)}), refused


def _value(config: Config, name: str) -> object:
    value: object = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _differences(name: str, old: object, new: object) -> Iterator[str]:
    """The names of settings that differ. Values may be secret, and are not told."""
    if isinstance(old, BaseModel) and type(old) is type(new):
        for key in type(old).model_fields:
            yield from _differences(f"{name}.{key}" if name else key, getattr(old, key), getattr(new, key))
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield name
