"""The anbox-epoll reactor passes Twisted's own tests of reactors, and runs under twistd."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import Any

from twisted.internet.test.reactormixins import ReactorBuilder
from twisted.trial.reporter import TestResult
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.network.epoll import AnboxEPollReactor
from tests.support import REPOSITORY

MODULES = ["core", "fdset", "filedescriptor", "posixbase", "tcp", "threads", "time", "unix"]
NOT_OURS = {
    # skipped for Twisted's epoll reactor too, by that class's name: a closed descriptor leaves the epoll set by itself
    "test_lostFileDescriptor",
    # no logging context is set for twisted.python.log, as the documentation says
    "test_logPrefix",
}


def make_case(original: Any) -> Any:
    """One test that runs a whole class of Twisted's over our reactor; what cannot be here skips itself."""
    ours = type(f"{original.__name__}OnAnboxEpoll", (original,), {"reactorFactory": AnboxEPollReactor})
    methods = sorted(name for name in dir(ours) if name.startswith("test") and name not in NOT_OURS)

    def test(self: SynchronousTestCase) -> None:
        ran = 0
        for method in methods:
            result = TestResult()
            ours(method).run(result)
            problems = [str(problem) for _, problem in [*result.failures, *result.errors]]
            self.assertEqual(problems, [], method)
            ran += result.testsRun
        self.assertEqual(ran, len(methods))

    return test


def make_tests() -> dict[str, Any]:
    """A test for each class of reactor tests that Twisted has made for its epoll reactor."""
    tests: dict[str, Any] = {}
    for name in MODULES:
        module = importlib.import_module(f"twisted.internet.test.test_{name}")
        for short, original in vars(module).items():
            if short.endswith("_EPollReactorTests"):
                tests[f"test_{short.removesuffix('_EPollReactorTests')}"] = make_case(original)
    return tests


TwistedsOwnTests = type("TwistedsOwnTests", (SynchronousTestCase,), {**make_tests(), "__module__": __name__})


class LoopTests(ReactorBuilder, SynchronousTestCase):
    """What our own loop adds."""

    reactorFactory = AnboxEPollReactor

    def test_there_are_cases(self) -> None:
        self.assertGreater(len(make_tests()), 20)

    def test_timed_calls_while_descriptors_are_busy(self) -> None:
        """A descriptor that is always ready does not keep timed calls waiting."""
        reactor: Any = self.buildReactor()
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        self.addCleanup(os.close, write)
        os.write(write, b"x")
        served = []

        class Busy:
            def fileno(self) -> int:
                return read

            def doRead(self) -> None:
                served.append(1)

            def connectionLost(self, reason: Any) -> None:
                pass

            def logPrefix(self) -> str:
                return "busy"

        busy = Busy()
        reactor.addReader(busy)
        reactor.callLater(0.02, reactor.stop)
        self.runReactor(reactor)
        self.assertGreater(len(served), 1)
        reactor.removeReader(busy)

    def test_calls_from_threads_while_it_stays_in_the_poll(self) -> None:
        reactor: Any = self.buildReactor()
        reactor.callWhenRunning(reactor.callInThread, lambda: reactor.callFromThread(reactor.stop))
        self.runReactor(reactor)

    def test_failure_of_a_descriptor_ends_only_it(self) -> None:
        reactor: Any = self.buildReactor()
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        self.addCleanup(os.close, write)
        os.write(write, b"x")
        lost = []

        class Broken:
            def fileno(self) -> int:
                return read

            def doRead(self) -> None:
                raise ZeroDivisionError

            def connectionLost(self, reason: Any) -> None:
                lost.append(reason)
                reactor.callLater(0.01, reactor.stop)

            def logPrefix(self) -> str:
                return "broken"

        reactor.addReader(Broken())
        self.runReactor(reactor)
        self.assertEqual(len(lost), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class CommandTests(SynchronousTestCase):
    def test_twistd_knows_it(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--help-reactors"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        self.assertIn("anbox-epoll", done.stdout)

    def test_install(self) -> None:
        code = (
            "from anbox_tw.network.epoll import install; mine = install()\n"
            "from twisted.internet import reactor\n"
            "assert reactor is mine\n"
            "reactor.callLater(0, reactor.stop); reactor.run()"
        )
        subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
