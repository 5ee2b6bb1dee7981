"""A real web server with Range, validators, and faults on demand."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

Fault = Callable[[Request, bytes], Any]
"""Answers a request in place of the server; is given the bytes that were asked for."""


def squashfs(size: int = 300_000) -> bytes:
    """What is recognised as a squashfs image of that size."""
    head = bytearray(96)
    head[:4] = b"hsqs"
    struct.pack_into("<H", head, 28, 4)
    struct.pack_into("<Q", head, 40, size)
    return bytes(head) + os.urandom(size - 96)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Served(Resource):
    """One file.

    Attributes:
        data: its bytes.
        etag: strong, weak, or none.
        faults: of the next requests; ``None`` is a good answer.
        asked: the Range of each request.
    """

    isLeaf = True

    def __init__(self, data: bytes, etag: str = '"1"') -> None:
        super().__init__()
        self.data = data
        self.etag = etag
        self.faults: list[Fault | None] = []
        self.asked: list[str | None] = []

    def render_GET(self, request: Request) -> Any:
        wanted = request.getHeader("range")
        self.asked.append(wanted)
        data, first = self.data, 0
        if self.etag:
            request.setHeader("etag", self.etag)
        if wanted and request.getHeader("if-range") in (None, self.etag):
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            if first >= len(data):
                request.setResponseCode(416)
                request.setHeader("content-range", f"bytes */{len(data)}")
                return b""
            request.setResponseCode(206)
            request.setHeader("content-range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            data = data[first:]
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            return fault(request, data)
        request.setHeader("content-length", str(len(data)))
        return data


def status(code: int) -> Fault:
    """Answers with a status."""

    def answer(request: Request, data: bytes) -> bytes:
        request.setResponseCode(code)
        return b"no"

    return answer


def cut(count: int) -> Fault:
    """Sends so many bytes and breaks the connection."""

    def answer(request: Request, data: bytes) -> Any:
        request.setHeader("content-length", str(len(data)))
        request.write(data[:count])
        # after the bytes have left
        transport: Any = request.transport
        reactor.callLater(0.05, transport.abortConnection)
        return NOT_DONE_YET

    return answer


def stall(count: int) -> Fault:
    """Sends so many bytes and then nothing."""

    def answer(request: Request, data: bytes) -> Any:
        request.setHeader("content-length", str(len(data)))
        request.write(data[:count])
        return NOT_DONE_YET

    return answer


def redirect(url: str) -> Fault:
    """Sends the client elsewhere."""

    def answer(request: Request, data: bytes) -> bytes:
        request.redirect(url.encode())
        return b""

    return answer


class Server:
    """Serves files below ``/``."""

    def __init__(self, test: TestCase, context: Any = None) -> None:
        self.root = Resource()
        self._test = test
        self._site: Any = Site(self.root)
        self._site.noisy = False
        self._context = context
        self._scheme = "http" if context is None else "https"
        self.port: Any = self._listen(0)
        test.addCleanup(self.stop)

    def _listen(self, number: int) -> Any:
        listening: Any = reactor
        if self._context is None:
            return reactor.listenTCP(number, self._site, interface="127.0.0.1")
        return listening.listenSSL(number, self._site, self._context, interface="127.0.0.1")

    def url(self, name: str) -> str:
        host = "localhost" if self._scheme == "https" else "127.0.0.1"
        return f"{self._scheme}://{host}:{self.port.getHost().port}/{name}"

    def put(self, name: str, data: bytes, etag: str = '"1"') -> Served:
        served = Served(data, etag)
        self.root.putChild(name.encode(), served)
        return served

    def put_image(self, name: str, data: bytes, etag: str = '"1"') -> Served:
        """A file and its checksum."""
        self.put(f"{name}.sha256", f"{digest(data)}  {name}\n".encode())
        return self.put(name, data, etag)

    async def stop(self) -> None:
        """Listen no more, and break every connection."""
        connections: list[Any] = [
            reader for reader in reactor.getReaders() if getattr(reader, "server", None) is self.port
        ]
        await maybeDeferred(self.port.stopListening)
        for connection in connections:
            connection.abortConnection()

    async def restart(self) -> None:
        """Come back at the same port."""
        number = self.port.getHost().port
        await self.stop()
        self.port = self._listen(number)
