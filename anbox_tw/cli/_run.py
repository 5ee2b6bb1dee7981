"""Run one coroutine on the reactor from a click command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.python.failure import Failure

__all__ = ["first_of", "pause", "run"]

T = TypeVar("T")


def run(main: Callable[[Any], Coroutine[Deferred[Any], Any, T] | Deferred[T]], *, patient: bool = False) -> T:
    """Run ``main(reactor)`` to its end and return its result.

    SIGINT, SIGTERM and SIGHUP cancel it; the coroutine ends what it began and the program then exits with
    128 + the signal's number, unless the coroutine returned a result all the same.

    Args:
        main: takes the reactor, returns a coroutine or a Deferred.
        patient: a second signal changes nothing, because what ends must end in order; otherwise it exits at once.

    Raises:
        anbox_tw.errors.AnboxError: whatever ``main`` raised.
    """
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    outcome: list[T | Failure] = []
    caught: list[int] = []

    def begin() -> None:
        work: Deferred[T] = ensureDeferred(main(reactor))

        def on_signal(number: int, frame: object) -> None:
            caught.append(number)
            if len(caught) == 1:
                reactor.callFromThread(work.cancel)
            elif not patient:
                os._exit(128 + number)

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


async def first_of(*contenders: Deferred[Any]) -> tuple[int, Any]:
    """Wait for the first of several Deferreds; the others are cancelled and their end is ignored.

    Returns:
        The place of the first one among the arguments, and its result.
    """
    finished: Deferred[tuple[int, Any]] = Deferred()
    done: list[bool] = []

    def ended(result: Any, place: int) -> None:
        if done:
            return  # a loser: cancelled by us, or too late
        done.append(True)
        if isinstance(result, Failure):
            finished.errback(result)
        else:
            finished.callback((place, result))

    for place, contender in enumerate(contenders):
        contender.addBoth(ended, place)
    try:
        return await finished
    finally:
        done.append(True)
        for contender in contenders:
            contender.cancel()


async def pause(reactor: Any, seconds: float) -> None:
    """Let ``seconds`` go by."""
    from twisted.internet.task import deferLater

    await deferLater(reactor, seconds)
