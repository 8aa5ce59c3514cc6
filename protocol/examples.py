"""Examples of the errors that pgnear raises: with what arguments, entered beside each by a decorator.

Lives here: the register. Not here: the errors (`errors`), and what is written from them (`reference`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from protocol.responses import PgError

Raises = TypeVar("Raises", bound=Callable[..., PgError])

EXAMPLES: dict[Callable[..., PgError], list[dict[str, Any]]] = {}
"""Every function that makes an error, in the order of their source, with the arguments of its examples."""


def example(**arguments: object) -> Callable[[Raises], Raises]:
    """Enter the function into `EXAMPLES`."""

    def enter(function: Raises) -> Raises:
        EXAMPLES.setdefault(function, []).insert(0, arguments)  # the decorator nearest to the function runs first
        return function

    return enter


def examples(name: str, *values: object) -> Callable[[Raises], Raises]:
    """Enter the function with each of `values` for its one argument."""

    def enter(function: Raises) -> Raises:
        EXAMPLES.setdefault(function, []).extend({name: value} for value in values)
        return function

    return enter
