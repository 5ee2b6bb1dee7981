"""The anbox-epoll reactor passes Twisted's own tests of reactors, and runs under twistd."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.test.reactormixins import ReactorBuilder
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from anbox_tw.network.epoll import AnboxEPollReactor
from tests.support import REPOSITORY

MODULES = ["core", "fdset", "filedescriptor", "posixbase", "tcp", "threads", "time", "unix"]
NOT_OURS = {
    "test_lostFileDescriptor": "Twisted skips it for its epoll reactor too, by that class's name",
    "test_logPrefix": "sets no logging context for twisted.python.log, as its documentation says",
}


def left_out(reason: str) -> Callable[[object], None]:
    """A test that says why it is not run."""

    def test(self: object) -> None:
        raise SkipTest(reason)

    return test


def make_cases() -> dict[str, Any]:
    """One test case for each of Twisted's builders of reactor tests, over our reactor."""
    cases: dict[str, Any] = {}
    for name in MODULES:
        module = importlib.import_module(f"twisted.internet.test.test_{name}")
        for short, original in vars(module).items():
            if not short.endswith("_EPollReactorTests"):
                continue
            case: Any = type(
                short.replace("EPollReactorTests", "AnboxEPollReactorTests"),
                (original,),
                {"reactorFactory": AnboxEPollReactor, "__module__": __name__},
            )
            for method, reason in NOT_OURS.items():
                if hasattr(case, method):
                    setattr(case, method, left_out(reason))
            cases[case.__name__] = case
    return cases


globals().update(make_cases())


class LoopTests(ReactorBuilder, SynchronousTestCase):
    """What our own loop adds."""

    reactorFactory = AnboxEPollReactor

    def test_there_are_cases(self) -> None:
        self.assertGreater(len(make_cases()), 20)

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
