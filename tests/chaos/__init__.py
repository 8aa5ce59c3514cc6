"""The chaos matrix: a bank's transfers through pgnear while one thing after another breaks.

bank       the load and its books: what was acknowledged, what is unknown, whose answer was whose
faults     what is broken, one function each, and how it is mended
failover   the same with a standby that takes over
rig        PostgreSQL, a proxy, pgnear: real processes; `bent/` lets a test turn pgnear's clock and names
report     the table in docs/chaos.md
soak       faults at random for as long as one likes, and what is left of them at the end
__main__   `python -m tests.chaos`, and with --soak
"""
