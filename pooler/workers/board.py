"""Shared memory that all workers read at any time."""

from __future__ import annotations

import os


def create(count: int) -> int:
    return os.memfd_create("pgnear")


class Board:
    @classmethod
    def open(cls, descriptor: int, index: int, count: int) -> Board:
        return cls()

    def worker_lost(self, index: int) -> None:
        pass
