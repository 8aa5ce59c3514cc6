"""A worker process: `python -m pooler.workers INDEX COUNT LINE BOARD`, started by the parent only.

LINE and BOARD are file descriptors. What it is to do it asks the parent, as its command line can be read by others.
"""

from __future__ import annotations

import sys

from pooler.workers.worker import run

if __name__ == "__main__":
    sys.exit(run(*map(int, sys.argv[1:])))
