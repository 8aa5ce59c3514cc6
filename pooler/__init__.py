"""The running pgnear: sessions, pools, cache, ceremonies and the command. See ARCHITECTURE.md for the house."""

from importlib.util import find_spec

__version__ = "0.1.0"


def accelerated() -> bool:
    """Whether the hot path runs compiled (see setup.py)."""
    found = find_spec("pooler.session")
    return found is not None and not (found.origin or "").endswith(".py")
