"""Which deadline holds for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import config


def loaded(tmp_path: Path, text: str, **more: Any) -> config.Config:
    file = tmp_path / "pgnear.toml"
    file.write_text(f'origin = "postgresql://app:secret@localhost/shop"\n{text}')
    return config.load(file=file, environ=more)


def test_the_first_override_that_sets_a_deadline_counts_for_that_deadline(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        """
        query_timeout = "30s"
        [[override]]
        user = "reporting"
        query_timeout = 0
        [[override]]
        database = "shop"
        query_timeout = "5s"
        pool_wait_timeout = "1s"
        """,
    )
    assert settings.deadlines("shop", "reporting").query_timeout == 0
    assert settings.deadlines("shop", "reporting").pool_wait_timeout == 1
    assert settings.deadlines("shop", "app").query_timeout == 5
    assert settings.deadlines("stock", "app").query_timeout == 30
    assert settings.deadlines("shop", None).pool_wait_timeout == 1
    assert settings.shortest("query_timeout") == 5


def test_users_share_origin_connections_and_so_their_deadlines(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="origin_lifetime: users share origin connections"):
        loaded(tmp_path, '[[override]]\nuser = "app"\norigin_lifetime = "1min"')
