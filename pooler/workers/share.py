"""A worker's part of what the configuration allows all workers together.

Lives here: what is divided. What is counted for all of them (clients, their addresses, replication connections) is not:
see `board`.
"""

from __future__ import annotations

from config import Config


def share(config: Config, index: int, count: int) -> Config:
    """`config` for the worker `index` of `count`."""

    def part(whole: int) -> int:
        return whole // count + (index < whole % count)

    def at_least_one(whole: int) -> int:
        return part(whole) or 1

    databases = {
        name: database.model_copy(update={"pool_size": part(database.pool_size or config.pool_size)})
        for name, database in config.databases.items()
    }
    replicas = tuple(
        replica.model_copy(update={"pool_size": at_least_one(replica.pool_size)}) for replica in config.replica
    )
    policies = tuple(
        policy.model_copy(update={"max_bytes": policy.max_bytes // count}) if policy.max_bytes is not None else policy
        for policy in config.cache.policy
    )
    cache = config.cache.model_copy(update={"max_bytes": config.cache.max_bytes // count, "policy": policies})
    return config.model_copy(
        update={
            "pool_size": part(config.pool_size),
            "min_pool_size": part(config.min_pool_size),
            "reserve_pool_size": part(config.reserve_pool_size),
            "max_waiting": at_least_one(config.max_waiting) if config.max_waiting else 0,
            "max_unauthenticated_connections": at_least_one(config.max_unauthenticated_connections),
            "databases": databases,
            "replica": replicas,
            "cache": cache,
            "http": None,
        }
    )
