"""A reactor for relays and small messages: Twisted's epoll reactor with less between the kernel and the descriptor.

Choose it with ``twistd --reactor anbox-epoll``, or ``install()`` before anything imports ``twisted.internet.reactor``.
It differs from ``epoll`` in two ways:

* No logging context is set up around each ``doRead`` and ``doWrite``. Only the old ``twisted.python.log`` reads that
  (the ``system`` of a line); ``twisted.logger`` does not. A failure of a descriptor is logged with its prefix all the same.
* While no thread and no timed call has anything to run, it goes from one poll straight to the next.
"""

from __future__ import annotations

import errno
import sys
from typing import Any, Final

from twisted.internet import epollreactor
from twisted.internet.error import ConnectionFdescWentAway
from twisted.logger import Logger
from twisted.python import log

__all__ = ["AnboxEPollReactor", "install"]

_NO_FILEDESC: Final = ConnectionFdescWentAway("File descriptor lost")
# Asked for at once; more are reported by the next poll. Python allocates room for them each time it polls, and room for
# a few comes from its own small pools. When that many were there, the next poll asks for many.
FEW_EVENTS: Final = 32
MANY_EVENTS: Final = 256


class AnboxEPollReactor(epollreactor.EPollReactor):
    """See the module."""

    _our_log = Logger()

    def mainLoop(self) -> None:
        """Run until stopped; see ``twisted.internet.base.ReactorBase.mainLoop``."""
        while self._started:
            try:
                while self._started:
                    self.runUntilCurrent()
                    timeout = self.timeout()
                    self._poll(timeout if self.running else 0, stay=True)
            except Exception:
                self._our_log.failure("unexpected error in the main loop")

    # Adding and removing as Twisted does it, in one step for the usual case: a descriptor that epoll knows.

    def addReader(self, reader: Any) -> None:
        """See ``IReactorFDSet``."""
        fd = reader.fileno()
        if fd not in self._reads and fd not in self._writes:
            try:
                self._poller.register(fd, self._POLL_IN)
            except OSError:
                super().addReader(reader)
            else:
                self._reads.add(fd)
                self._selectables[fd] = reader
        else:
            super().addReader(reader)

    def removeReader(self, reader: Any) -> None:
        """See ``IReactorFDSet``."""
        fd = reader.fileno()
        if fd in self._reads and fd not in self._writes:
            del self._selectables[fd]
            self._poller.unregister(fd)
            self._reads.remove(fd)
        else:
            super().removeReader(reader)

    def removeWriter(self, writer: Any) -> None:
        """See ``IReactorFDSet``; most are removed that were never added."""
        fd = writer.fileno()
        if fd in self._writes or fd < 0 or self._continuousPolling.isWriting(writer):
            super().removeWriter(writer)

    def doPoll(self, timeout: float | None) -> None:
        """Poll once and serve what is ready; what ``iterate`` and the tests of reactors call."""
        self._poll(timeout)

    doIteration = doPoll

    def _poll(self, timeout: float | None, stay: bool = False) -> None:
        poll, selectables, disconnected = self._poller.poll, self._selectables, self._POLL_DISCONNECTED
        readable, writable = self._POLL_IN, self._POLL_OUT
        room = FEW_EVENTS
        if timeout is None:
            timeout = -1
        while True:
            try:
                events = poll(timeout, room)
            except OSError as error:
                if error.errno == errno.EINTR:
                    return
                raise
            room = FEW_EVENTS if len(events) < FEW_EVENTS else MANY_EVENTS
            for fd, event in events:
                selectable = selectables.get(fd)
                if selectable is None:
                    continue
                why: Any = None
                in_read = True
                try:
                    if selectable.fileno() == -1:
                        why, in_read = _NO_FILEDESC, False
                    elif event == readable:
                        # nearly always
                        why = selectable.doRead()
                    elif event & disconnected and not event & readable:
                        # a clean end or a loss: Twisted's own rules
                        log.callWithLogger(selectable, self._doReadOrWrite, selectable, fd, event)
                        continue
                    else:
                        if event & readable:
                            why = selectable.doRead()
                        if not why and event & writable:
                            why = selectable.doWrite()
                            in_read = False
                except BaseException:
                    # as Twisted: what an application raises ends its descriptor, not the loop
                    why = sys.exc_info()[1]
                    log.callWithLogger(selectable, log.err)
                if why:
                    self._disconnectSelectable(selectable, why, in_read)
            if not stay or self.threadCallQueue or self._newTimedCalls or self._justStopped:
                return
            if not (self._started and self.running):
                return
            if self._pendingTimedCalls:
                timeout = self._pendingTimedCalls[0].time - self.seconds()
                if timeout <= 0:
                    return
            else:
                timeout = -1


def install() -> AnboxEPollReactor:
    """Make this the process's reactor; before anything imports ``twisted.internet.reactor``."""
    from twisted.internet.main import installReactor

    reactor = AnboxEPollReactor()
    installReactor(reactor)
    return reactor
