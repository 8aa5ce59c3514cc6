"""The running pgnear: sessions, pools, cache, ceremonies and the command. See ARCHITECTURE.md for the house."""

__version__ = "0.1.0"
