"""A page of docs/ that has a section for each suite; what was run again takes the place of what was there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tests.suites import compare
from tests.suites.compare import FAILED, Difference, Outcome


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


def tell_unknown(suite: str, found: Iterable[Difference], most: int | None = None) -> None:
    """Print the differences without a reason, each with what was said of it: the last `most` characters, or all."""
    for one in found:
        if one.reason is None:
            print(f"\n=== {suite} {one.test}: {one.direct.status} directly, {one.pooled.status} through pgnear")
            detail = (one.pooled if one.pooled.status == FAILED else one.direct).detail
            print(detail if most is None else detail[-most:])


def section(
    head: Sequence[str],
    direct: Mapping[str, Outcome],
    pooled: Mapping[str, Outcome],
    excluded: Mapping[str, str],
    trouble: Sequence[str],
    found: Sequence[Difference],
) -> str:
    """What the page says of one suite, below `head`: the heading and the versions.

    Args:
      excluded: tests that were not run, and why. trouble: pgnear's own.
    """
    lines = [*head, f"- direct: {compare.counts(direct)}", f"- through pgnear: {compare.counts(pooled)}"]
    lines += compare.failed_directly(direct)
    lines += [f"- not run: `{test}`: {reason}" for test, reason in excluded.items()]
    lines += [f"- pgnear's own trouble: {one}" for one in trouble]
    return "\n".join([*lines, "", compare.table(found)])
