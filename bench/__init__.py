"""pgbench against direct, PgBouncer and pgnear: `python -m bench` (or `make bench`)."""
