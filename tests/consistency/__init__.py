"""The consistency checker: many writers and readers over rows that carry versions, while things break.

`make cache-check` runs it; `test_short.py` is the part of it that every run of the tests does. What counts as a
violation stands in `workload`, what is broken in `faults`.
"""
