"""A page of docs/ that has a section for each suite; what was run again takes the place of what was there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def update(
    file: Path, head: Iterable[str], sections: Iterable[str], order: Sequence[str], key: Callable[[str], str]
) -> None:
    """Put `sections` in the place of what `file` has of the same suites; the others stay as they are.

    Args:
      order: the keys of all suites. What the file has of others goes.
      key: of a suite, from the heading of its section.
    """
    file.parent.mkdir(exist_ok=True)
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    kept = [f"## {part}" for part in before.split("\n## ")[1:]]
    written = {key(part.partition("\n")[0][3:]): f"{part.rstrip()}\n" for part in (*kept, *sections)}
    file.write_text("\n".join([*head, *(written[name] for name in order if name in written)]), encoding="utf-8")
