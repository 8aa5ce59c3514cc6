"""Shared memory that all workers read at any time."""
