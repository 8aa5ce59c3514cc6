"""A pytest plugin that writes each outcome down as it comes, so that a run that is ended keeps what it had.

Loaded by the interpreter of a driver's virtual environment, so it imports nothing of ours. The file that OUTCOMES
names gets a JSON line when a test begins and another when a phase of it ended; tests that it already has are not run.
"""

import json
import os

import pytest

FILE = os.environ["OUTCOMES"]


def _write(test, status, detail=""):
    with open(FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps([test, status, detail]) + "\n")


def pytest_collection_modifyitems(items):
    if os.path.exists(FILE):
        with open(FILE, encoding="utf-8") as file:
            done = {json.loads(line)[0] for line in file}
        items[:] = [item for item in items if item.nodeid not in done]


def pytest_collectreport(report):
    if report.failed:
        _write(report.nodeid, "failed", str(report.longrepr))


def pytest_runtest_logstart(nodeid):
    _write(nodeid, "began")


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    if report.failed:
        _write(report.nodeid, "failed", str(report.longrepr))
    elif report.skipped:
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        _write(report.nodeid, "skipped", str(why))
    elif report.when == "call":
        _write(report.nodeid, "passed")
