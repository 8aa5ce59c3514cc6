"""`ACCELERATE=1 pip install .` compiles the modules of the hot path with mypyc; without it nothing is compiled.

Everything else that there is to say about the package is in pyproject.toml.
"""

import os

from setuptools import setup

HOT = """
    protocol/framing.py
    pooler/aftermath.py pooler/answers.py pooler/boarding.py pooler/cache/advice.py pooler/cache/keys.py
    pooler/cache/ready.py pooler/caching.py pooler/consequences.py pooler/copying.py pooler/ending.py
    pooler/express.py pooler/extended.py pooler/histogram.py pooler/link.py pooler/matching.py
    pooler/operations.py pooler/origin.py pooler/pins.py pooler/pool.py pooler/queue.py pooler/reactor.py
    pooler/repeats.py pooler/sequences.py pooler/session.py pooler/simple.py pooler/sql/classifier.py
    pooler/sql/memory.py pooler/sql/shape.py pooler/sql/statement.py pooler/state.py pooler/translation.py
    pooler/transport.py pooler/unit.py pooler/walk.py pooler/words.py pooler/writes.py
""".split()
"""What runs for each query. Not `statements` and `settings`: mypyc's classes cannot be weakly referenced. Not
the cache's entries and their store, whose bytes are counted: a compiled class takes more of them. Not `stats`, whose
counters are told by name: a compiled class has no `__slots__`.
"""

if os.environ.get("ACCELERATE", "") in ("", "0"):
    setup()
else:
    try:
        from mypyc.build import mypycify
    except ImportError:  # asked what it needs, before it is there
        setup(setup_requires=["mypy>=1.15"])
    else:
        setup(
            setup_requires=["mypy>=1.15"],
            ext_modules=mypycify(["--config-file=accelerate.ini", *HOT], group_name="pgnear", opt_level="2"),
        )
