"""`python -m pooler`: the same as the command `pgnear`."""

from pooler.cli import main

main()
