"""pgnear with its hot path compiled, for rigs: a copy of the sources, and beside them what setup.py makes of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import lru_cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("protocol", "config", "pooler")
FILES = ("setup.py", "accelerate.ini", "pyproject.toml", "README.md")


@lru_cache
def compiled() -> Path | None:
    """The directory to run it from, made where these sources have not been compiled yet, which takes a minute or more;
    None, and a line that says why, where that cannot be done.
    """
    sources = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    digest = sha256(b"\0".join(path.read_bytes() for path in [*sources, *(ROOT / name for name in FILES)]))
    place = ROOT / "build" / f"compiled-{digest.hexdigest()[:12]}"
    if (place / "whole").exists():
        return place
    if why := _why_not():
        print(f"{why}: the columns of compiled pgnear are left out.", file=sys.stderr)
        return None
    print("Compiling pgnear's hot path ...", file=sys.stderr, flush=True)
    shutil.rmtree(place, ignore_errors=True)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, place / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=place, env={**os.environ, "PATH": path, "ACCELERATE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        print(f"pgnear was not compiled: {done.stderr[-2000:]}", file=sys.stderr)
        return None
    shutil.rmtree(place / "build", ignore_errors=True)
    (place / "whole").touch()
    return place


def _why_not() -> str:
    if find_spec("mypyc") is None:
        return "mypy is not installed"
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        return "There is no C compiler"
    return ""
