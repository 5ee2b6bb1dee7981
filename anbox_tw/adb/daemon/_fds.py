"""Reading and writing file descriptors of children, with backpressure."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet import main
from twisted.internet.interfaces import IPushProducer, IReadDescriptor, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb._wire import Buffer

__all__ = ["FdReader", "FdWriter"]

_SMALL_READ = 64 * 1024
_LARGE_READ = 256 * 1024


@implementer(IReadDescriptor, IPushProducer)
class FdReader:
    """Reads a descriptor until its end and closes it.

    Args:
        reactor: the reactor.
        fd: an open descriptor, owned by this object from now on.
        data: called with what was read.
        ended: called once at the end of the file, or on an error; not after ``close``.
    """

    def __init__(
        self, reactor: Any, fd: int, data: Callable[[bytes], None], ended: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._fd = fd
        self._data = data
        self._ended = ended
        self._size = _SMALL_READ
        os.set_blocking(fd, False)
        reactor.addReader(self)

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        return self._fd

    def logPrefix(self) -> str:
        """For the reactor's log."""
        return "adbd"

    def doRead(self) -> Any:
        """The reactor says there is something."""
        try:
            data = os.read(self._fd, self._size)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            # A pty whose other side is gone says EIO: that is its end of file.
            return main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        if len(data) == self._size:
            self._size = _LARGE_READ
        self._data(data)
        return None

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has been told the end by ``doRead``."""
        if self._fd >= 0:
            self.close()
            self._ended()

    def pauseProducing(self) -> None:
        """Read no more for now."""
        if self._fd >= 0:
            self._reactor.removeReader(self)

    def resumeProducing(self) -> None:
        """Read on."""
        if self._fd >= 0:
            self._reactor.addReader(self)

    def stopProducing(self) -> None:
        """The consumer is gone."""
        self.close()

    def close(self) -> None:
        """Stop and close the descriptor."""
        if self._fd >= 0:
            self._reactor.removeReader(self)
            os.close(self._fd)
            self._fd = -1


@implementer(IWriteDescriptor)
class FdWriter:
    """Writes to a descriptor without blocking.

    Args:
        reactor: the reactor.
        fd: an open descriptor, owned by this object from now on.
        source: paused while something is waiting to be written.
    """

    def __init__(self, reactor: Any, fd: int, source: IPushProducer | None = None) -> None:
        self._reactor = reactor
        self._fd = fd
        self._source = source
        self._queue: deque[Buffer | memoryview] = deque()
        self._closing = False
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        return self._fd

    def logPrefix(self) -> str:
        """For the reactor's log."""
        return "adbd"

    def write(self, data: Buffer) -> None:
        """Write ``data``, or drop it when nobody reads any more."""
        if self._fd < 0 or self._closing:
            return
        if self._queue:
            self._queue.append(data)
            return
        rest = self._try(data)
        if rest is not None:
            self._queue.append(rest)
            self._reactor.addWriter(self)
            if self._source is not None:
                self._source.pauseProducing()

    def _try(self, data: Buffer | memoryview) -> memoryview | None:
        """Write; what could not be written, or None."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except (BlockingIOError, InterruptedError):
                return view
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO, errno.EINVAL):
                    raise
                self.close()
                return None
        return None

    def doWrite(self) -> Any:
        """The reactor says there is room."""
        while self._queue:
            rest = self._try(self._queue.popleft())
            if rest is not None:
                self._queue.appendleft(rest)
                return None
        if self._fd >= 0:
            self._reactor.removeWriter(self)
            if self._closing:
                self.close()
            elif self._source is not None:
                self._source.resumeProducing()
        return None

    def close_when_written(self) -> None:
        """Close as soon as all that was written is out."""
        self._closing = True
        if not self._queue:
            self.close()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives the descriptor up."""
        self.close()

    def close(self) -> None:
        """Close now; what waits is dropped and the source set free."""
        if self._fd < 0:
            return
        self._reactor.removeWriter(self)
        fd, self._fd = self._fd, -1
        os.close(fd)
        waiting, self._queue = self._queue, deque()
        if waiting and self._source is not None:
            self._source.resumeProducing()
