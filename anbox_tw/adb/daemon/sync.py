"""``sync:``: the blocking engine in a thread of its own, joined to a stream.

A thread per stream, as in AOSP: file work may block for any time, and the engine reads like the protocol.
Whole packets change hands, so the reactor's and the thread's work overlap and a large push costs two
hand-overs for each megabyte.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import SimpleQueue
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb._wire import Buffer
from anbox_tw.adb.daemon._syncengine import BULK_SIZE, PipeClosed, SyncEngine
from anbox_tw.adb.daemon.files import FileTree
from anbox_tw.adb.daemon.identity import Identity
from anbox_tw.adb.streams import AdbStream
from anbox_tw.errors import AdbError

__all__ = ["SyncStream", "SyncThreads"]

MAX_THREADS = 256
"""Sync streams at a time; each has a thread. Real hosts use one for each running push or pull."""
IN_HIGH = 1024 * 1024
"""Bytes received and not yet taken by the thread above which the host waits."""
OUT_PIECES = 3
"""Outgoing buffers: one on its way, one waiting, one being filled."""


class SyncThreads:
    """The sync streams of one daemon, counted, so that a stop can wait for them."""

    def __init__(self) -> None:
        self.running = 0
        self._waiting: list[Deferred[None]] = []

    def begin(self) -> None:
        """One more. Raises ``AdbError`` when there are too many."""
        if self.running >= MAX_THREADS:
            raise AdbError(f"{MAX_THREADS} sync streams are open already")
        self.running += 1

    def end(self) -> None:
        """One less."""
        self.running -= 1
        if not self.running:
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                waiter.callback(None)

    def when_idle(self) -> Deferred[None]:
        """Fires when none is running."""
        waiter: Deferred[None] = Deferred()
        if self.running:
            self._waiting.append(waiter)
        else:
            waiter.callback(None)
        return waiter


@implementer(IPullProducer)
class SyncStream(Protocol):
    """One sync stream.

    Args:
        reactor: the reactor.
        tree: the files to serve.
        threads: where the thread is counted; ``begin`` has been called.
        identity: whom the thread acts as; None for the user that this process is.
    """

    takes_buffers = True
    transport: AdbStream
    _log = Logger()

    def __init__(
        self, reactor: Any, tree: FileTree, threads: SyncThreads, identity: Identity | None = None
    ) -> None:
        self._identity = identity
        self._reactor = reactor
        self._tree = tree
        self._threads = threads
        self._inbox: SimpleQueue[Buffer | None] = SimpleQueue()
        self._put = 0
        self._taken = 0
        self._paused = False
        self._outbox: deque[tuple[Buffer | memoryview, bytearray | None]] = deque()
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._buffers: SimpleQueue[bytearray | None] = SimpleQueue()
        self._buffers_made = 0
        self._filled: bytearray | None = None
        self._on_the_way: tuple[bool, bytearray | None] = (False, None)
        self._wakes = False
        self._done = False
        self._closed = False
        for _ in range(OUT_PIECES):
            self._tokens.put(True)

    # ------------------------------------------------------ in the reactor's thread

    def connectionMade(self) -> None:
        """The stream is open."""
        self.transport.registerProducer(self, False)
        threading.Thread(target=self._run, name="adbd-sync", daemon=True).start()

    def dataReceived(self, data: bytes) -> None:
        """Requests and file data from the host."""
        self._put += len(data)
        self._inbox.put(data)
        if self._put - self._taken > IN_HIGH:
            self.transport.pauseProducing()
            self._paused = True
            # The thread looks at _paused after it has set _taken: one of us two sees the other.
            if self._put - self._taken <= IN_HIGH:
                self._resume()

    def _resume(self) -> None:
        if self._paused and not self._closed:
            self._paused = False
            self.transport.resumeProducing()

    def resumeProducing(self) -> None:
        """All that was written has left: give the next piece."""
        sent, buffer = self._on_the_way
        if sent:
            self._on_the_way = (False, None)
            self._tokens.put(True)
            if buffer is not None:
                self._buffers.put(buffer)
        if self._outbox:
            piece, buffer = self._outbox.popleft()
            self._on_the_way = (True, buffer)
            self.transport.write(piece)
        elif self._done and not self._closed:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def stopProducing(self) -> None:
        """The stream is gone; ``connectionLost`` follows."""

    def _pump(self) -> None:
        self._wakes = False
        if not self._closed and not self._on_the_way[0]:
            self.resumeProducing()

    def _engine_done(self) -> None:
        self._done = True
        self._threads.end()
        self._pump()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the thread, wherever it waits."""
        self._closed = True
        self._inbox.put(None)
        self._tokens.put(False)
        self._buffers.put(None)

    # ------------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            if self._identity is not None:
                self._identity.become_in_this_thread()
            SyncEngine(self, self._tree).run()
        except Exception:
            self._log.failure("the sync service failed")
        finally:
            self._reactor.callFromThread(self._engine_done)

    def read(self) -> Buffer:
        """See ``Pipe``."""
        data = self._inbox.get()
        if data is None:
            self._inbox.put(None)
            raise PipeClosed
        self._taken += len(data)
        if self._paused:
            self._reactor.callFromThread(self._resume_if_low)
        return data

    def _resume_if_low(self) -> None:
        if self._put - self._taken <= IN_HIGH:
            self._resume()

    def write(self, data: Buffer | memoryview) -> None:
        """See ``Pipe``."""
        if not self._tokens.get():
            self._tokens.put(False)
            raise PipeClosed
        buffer, self._filled = self._filled, None
        self._outbox.append((data, buffer))
        if not self._wakes:
            self._wakes = True
            self._reactor.callFromThread(self._pump)

    def take_buffer(self) -> bytearray:
        """See ``Pipe``; the next ``write`` is of this buffer."""
        if self._filled is None:
            if self._buffers.empty() and self._buffers_made < OUT_PIECES:
                self._buffers_made += 1
                self._filled = bytearray(BULK_SIZE)
            else:
                self._filled = self._buffers.get()
                if self._filled is None:
                    self._buffers.put(None)
                    raise PipeClosed
        return self._filled
