"""Run one coroutine on the reactor from a click command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

__all__ = ["run"]

T = TypeVar("T")


def run(main: Callable[[Any], Coroutine[Deferred[Any], Any, T]], *, log_to_stderr: bool = False) -> T:
    """Run ``main(reactor)`` to its end and return its result.

    SIGINT, SIGTERM and SIGHUP cancel it; the coroutine ends what it began and the program then exits with
    128 + the signal's number, unless the coroutine returned a result all the same.

    Args:
        main: takes the reactor, returns a coroutine.
        log_to_stderr: write twisted's log to standard error (for debugging).

    Raises:
        anbox_tw.errors.AnboxError: whatever ``main`` raised.
    """
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    outcome: list[T | Failure] = []
    caught: list[int] = []
    if log_to_stderr:
        from twisted.logger import globalLogBeginner, textFileLogObserver

        globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)

    def begin() -> None:
        work: Deferred[T] = Deferred.fromCoroutine(main(reactor))

        def on_signal(number: int, frame: object) -> None:
            caught.append(number)
            reactor.callFromThread(work.cancel)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, on_signal)

        def ended(result: T | Failure) -> None:
            outcome.append(result)
            reactor.stop()

        work.addBoth(ended)

    reactor.callWhenRunning(begin)
    reactor.run()
    result = outcome[0]
    if isinstance(result, Failure):
        if caught and result.check(CancelledError):
            sys.exit(128 + caught[0])
        result.raiseException()
        raise AssertionError("a failure always raises")
    return result
