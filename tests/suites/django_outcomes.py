"""A runner for Django's own tests that writes each outcome down as it comes, as `outcomes_plugin` does for pytest.

Loaded by the interpreter of Django's virtual environment, so it imports nothing of ours. The file that OUTCOMES names
gets a JSON line when a test begins and another for what became of it; tests that it already has are not run. A test
that takes longer than TEST_SECONDS fails.
"""

import json
import os
import signal
import unittest

from django.test.runner import DiscoverRunner, iter_test_cases

FILE = os.environ["OUTCOMES"]
SECONDS = float(os.environ["TEST_SECONDS"])


def _write(test, status, detail=""):
    with open(FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps([_name(test), status, detail]) + "\n")


def _name(test):
    """`app.test_module.Class.test`; setUpClass and its like are known by their description."""
    return test.id() if isinstance(test, unittest.TestCase) else str(test)


def _too_long(number, frame):
    raise TimeoutError(f"the test took longer than {SECONDS:g} s")


class _Result(unittest.TextTestResult):
    def startTest(self, test):
        super().startTest(test)
        _write(test, "began")
        signal.setitimer(signal.ITIMER_REAL, SECONDS)

    def stopTest(self, test):
        signal.setitimer(signal.ITIMER_REAL, 0)
        super().stopTest(test)

    def addSuccess(self, test):
        super().addSuccess(test)
        _write(test, "passed")

    def addFailure(self, test, error):
        super().addFailure(test, error)
        _write(test, "failed", self._last_words(error, test))

    def addError(self, test, error):
        super().addError(test, error)
        _write(test, "failed", self._last_words(error, test))

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            _write(test, "failed", self._last_words(error, test))

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        _write(test, "skipped", reason)

    def addExpectedFailure(self, test, error):
        super().addExpectedFailure(test, error)
        _write(test, "passed")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        _write(test, "failed", "it was expected to fail")

    def _last_words(self, error, test):
        """The traceback; its last lines marked as pytest marks an exception."""
        text = self._exc_info_to_string(error, test)
        words = [f"E   {line}" for line in str(error[1]).splitlines()[:1] or [""]]
        return "\n".join([text, *(f"{words[0]} ({error[0].__name__})",)])


class Runner(DiscoverRunner):
    def get_resultclass(self):
        return _Result

    def build_suite(self, *args, **kwargs):
        suite = super().build_suite(*args, **kwargs)
        if os.path.exists(FILE):
            with open(FILE, encoding="utf-8") as file:
                done = {json.loads(line)[0] for line in file}
            suite = self.test_suite([test for test in iter_test_cases(suite) if _name(test) not in done])
        signal.signal(signal.SIGALRM, _too_long)
        return suite
