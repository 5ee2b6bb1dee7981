"""Fetching a file over HTTP: resumed, from mirrors, checked.

What has arrived is kept in a partial file beside its state: a fetch that was interrupted, however it was, goes on from there.
Nothing of it is used before the whole file has the SHA-256 that was promised.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent, RedirectAgent, ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent

from anbox_tw._version import __version__
from anbox_tw.container.imagestore._wire import (
    checksum_urls,
    content_range,
    find_checksum,
    is_sha256,
    strong_validator,
)
from anbox_tw.errors import ConfigError, ContainerError, HostLacks

__all__ = ["FetchFailed", "FetchOptions", "Fetcher", "Progress", "file_sha256"]

CHUNK_BYTES = 1024 * 1024
"""Gathered before a thread writes it; the connection is not read meanwhile."""

MAX_BYTES = 64 * 1024**3
"""Nobody has an image of that size; a server that says or sends more is wrong."""

MAX_CHECKSUM_BYTES = 1024 * 1024
MAX_REDIRECTS = 10
RETRY_DELAY_S = 1.0
MAX_RETRY_DELAY_S = 15.0
PARTIAL_STATE_BYTES = 64 * 1024

Progress = Callable[[int, int | None], object]
"""Called with the bytes that are there and, if it is known, how many there will be."""


class FetchFailed(ContainerError):
    """The file cannot be had, or is not what was promised; what was stored before is as it was."""


class _Again(Exception):
    """This attempt failed; another one may not."""


class _NextMirror(Exception):
    """This mirror has not got it."""


def _lower(text: str) -> str:
    return text.strip().lower()


@attrs.frozen
class FetchOptions:
    """How to fetch.

    Attributes:
        sha256: what the file must have; empty looks for a checksum file beside it.
        check: False takes a file without a checksum, if there is none.
        timeout: seconds without a byte, or for a connection, after which an attempt has failed.
        retries: attempts of one mirror in a row that bring nothing.
    """

    sha256: str = attrs.field(default="", converter=_lower)
    check: bool = True
    timeout: float = 30.0
    retries: int = 5

    def __attrs_post_init__(self) -> None:
        """Check them.

        Raises:
            ConfigError: the checksum is none.
        """
        if self.sha256 and not is_sha256(self.sha256):
            raise ConfigError(f"{self.sha256[:80]!r} is no SHA-256", "it has 64 hexadecimal digits")


@attrs.define
class _Partial:
    """What has arrived so far.

    Attributes:
        path: of the data.
        url: from which it came.
        validator: for If-Range, or empty.
        size: of what is there.
        whole: bytes there will be, or None.
    """

    path: Path
    url: str = ""
    validator: str = ""
    size: int = 0
    whole: int | None = None

    @property
    def state_path(self) -> Path:
        return self.path.with_suffix(".json")

    @classmethod
    def load(cls, path: Path) -> _Partial:
        partial = cls(path)
        try:
            with open(partial.state_path) as file:
                state = json.loads(file.read(PARTIAL_STATE_BYTES))
            partial.url, partial.validator = str(state["url"]), str(state["validator"])
            partial.size = os.path.getsize(path)
        except (OSError, ValueError, KeyError, TypeError):
            partial.forget()
        return partial

    def begin(self, url: str, validator: bytes | None) -> None:
        """Begin anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.url, self.validator = url, (validator or b"").decode("latin-1")
        self.size = 0
        with open(self.path, "wb"):
            pass
        with open(self.state_path, "w") as file:
            json.dump({"url": self.url, "validator": self.validator}, file)

    def forget(self) -> None:
        self.url, self.validator, self.size, self.whole = "", "", 0, None
        for path in (self.path, self.state_path):
            path.unlink(missing_ok=True)
        try:
            self.path.parent.rmdir()
        except OSError:
            pass


class Fetcher:
    """Fetches files.

    Args:
        reactor: connects, tells the time and has threads.
        agent: makes requests; by default one that checks certificates against the system's authorities.
    """

    _log = Logger()

    def __init__(self, reactor: Any, agent: IAgent | None = None) -> None:
        self._reactor = reactor
        self._agent = agent

    async def fetch(
        self,
        urls: Sequence[str],
        directory: Path,
        options: FetchOptions,
        progress: Progress = lambda done, whole: None,
    ) -> tuple[Path, str, str]:
        """Fetch one file.

        Args:
            urls: of the same file; the first that works is taken.
            directory: where the partial file is; ours alone.
            options: how.
            progress: told of each piece.

        Returns:
            Path of the file, its SHA-256, and the URL that it came from. The file is the caller's to move.

        Raises:
            FetchFailed: no URL gave the file, or it is not the promised one.
            HostLacks: the disk is full.
            ConfigError: a URL cannot be used.
        """
        for url in urls:
            if not url.startswith(("http://", "https://")) or not url.isascii() or " " in url:
                raise ConfigError(
                    f"{url[:200]!r} is no http or https URL", "import a file with 'anbox image import'"
                )
        agent = RedirectAgent(
            self._agent or Agent(self._reactor, connectTimeout=options.timeout), MAX_REDIRECTS
        )
        partial = _Partial.load(directory / "file")
        failures = []
        for url in urls:
            try:
                return await self._from_mirror(agent, url, partial, options, progress)
            except _NextMirror as error:
                failures.append(f"{url}: {error}")
                self._log.info("{failure}", failure=failures[-1])
        kept = f"; {partial.size} bytes are kept for the next time" if partial.size else ""
        raise FetchFailed(f"{'; '.join(failures)}{kept}", "check the URL and the network, then do it again")

    # -- checksums --

    async def _checksum(self, agent: Any, url: str, options: FetchOptions) -> str:
        """What a checksum file beside the file says; empty when there is none and none is needed.

        Raises:
            _Again: the server does not answer just now.
            _NextMirror: there is none, or no such file at all.
        """
        name = url.partition("?")[0].rpartition("/")[2]
        client: Any = HTTPClient(agent)
        for place in checksum_urls(url):
            text = await self._small(client, place, options)
            found = find_checksum(text, name)
            if found is not None:
                return found
        if not options.check:
            return ""
        response = await self._answer(client.head(url, allow_redirects=False), options)
        self._judge(response.code, response.phrase)
        raise _NextMirror(
            "there is no checksum beside it; give the file's own with --sha256, or take it unchecked with --no-checksum"
        )

    async def _small(self, client: Any, place: str, options: FetchOptions) -> str:
        """A checksum file's text; empty when there is none."""
        response = await self._answer(client.get(place, allow_redirects=False, unbuffered=True), options)
        body = _Body(self._reactor, options.timeout)
        text = bytearray()
        try:
            self._check_redirects(place, response.original)
            if response.code != 200:
                try:
                    self._judge(response.code, response.phrase)
                except _NextMirror:
                    pass
                response.deliverBody(body)
                body.abandon()
                return ""
        except BaseException:
            response.deliverBody(body)
            body.abandon()
            raise

        async def take(data: bytes) -> None:
            text.extend(data)
            if len(text) > MAX_CHECKSUM_BYTES:
                raise _NextMirror(f"{place} is too long for checksums")

        await body.receive(response, take)
        return text.decode("utf-8", "replace")

    async def _answer(self, asking: Deferred[Any], options: FetchOptions) -> Any:
        try:
            return await _cancellable(asking).addTimeout(options.timeout, self._reactor)
        except CancelledError:
            raise
        except Exception as error:
            raise _Again(_words(error)) from error

    def _judge(self, code: int, phrase: bytes) -> None:
        """Say what a status other than success means."""
        words = "".join(c if c.isprintable() else "?" for c in phrase.decode("latin-1"))[:100]
        if code in (408, 425, 429) or code >= 500:
            raise _Again(f"the server answers {code} {words}")
        if code >= 300:
            raise _NextMirror(f"the server answers {code} {words}")

    def _check_redirects(self, url: str, response: Any) -> None:
        """A secure URL that leads to an insecure one is not secure."""
        while response is not None:
            uri = response.request.absoluteURI if response.request is not None else b""
            if url.startswith("https:") and uri and not uri.startswith(b"https:"):
                raise _NextMirror(f"it leads from https to {uri.decode('latin-1')[:200]}")
            response = response.previousResponse

    # -- the file --

    async def _from_mirror(
        self,
        agent: Any,
        url: str,
        partial: _Partial,
        options: FetchOptions,
        progress: Progress,
    ) -> tuple[Path, str, str]:
        sha256 = options.sha256 or None
        failures, restarted = 0, False
        while True:
            before = partial.size
            try:
                if sha256 is None:
                    sha256 = await self._checksum(agent, url, options)
                await self._attempt(agent, url, partial, bool(sha256), options, progress)
            except _Again as error:
                failures = failures + 1 if partial.size <= before else 1
                if failures > options.retries:
                    raise _NextMirror(f"{error}; gave up after {failures} attempts") from error
                delay = min(MAX_RETRY_DELAY_S, RETRY_DELAY_S * 2 ** (failures - 1))
                self._log.info("{url}: {error}; again in {delay:g} s", url=url, error=error, delay=delay)
                await deferLater(self._reactor, delay)
                continue
            found = await self._in_thread(file_sha256, partial.path)
            if not sha256 or found == sha256:
                return partial.path, found, url
            resumed = before > 0
            partial.forget()
            if resumed and not restarted:
                # It may be the begin of another file; from its beginning it is what this mirror has.
                restarted = True
                continue
            raise _NextMirror(f"the file has SHA-256 {found}, and {sha256} was promised")

    async def _attempt(
        self,
        agent: Any,
        url: str,
        partial: _Partial,
        promised: bool,
        options: FetchOptions,
        progress: Progress,
    ) -> None:
        headers = Headers(
            {b"user-agent": [f"anbox-tw/{__version__}".encode()], b"accept-encoding": [b"identity"]}
        )
        # Bytes of another mirror, or without a validator, are worth something only if the whole is checked.
        same = partial.url == url and partial.validator
        if partial.size and (same or promised):
            headers.addRawHeader(b"range", b"bytes=%d-" % partial.size)
            if same:
                headers.addRawHeader(b"if-range", partial.validator.encode("latin-1"))
        else:
            partial.size = 0
        response = await self._answer(agent.request(b"GET", url.encode("ascii"), headers), options)
        body = _Body(self._reactor, options.timeout)
        try:
            self._check_redirects(url, response)
            if not self._begin(response, url, partial):
                return
            room = shutil.disk_usage(partial.path.parent).free
            needed = (partial.whole or 0) - partial.size
            if needed > room:
                raise self._disk_full(partial, f"{needed} bytes are needed, and {room} are free")
        except BaseException:
            response.deliverBody(body)
            body.abandon()
            raise
        progress(partial.size, partial.whole)
        with open(partial.path, "r+b") as file:
            file.truncate(partial.size)
            file.seek(partial.size)

            async def write(data: bytes) -> None:
                await self._in_thread(_write, file, data)
                partial.size += len(data)
                if partial.size > MAX_BYTES:
                    raise _NextMirror(f"it sends more than {MAX_BYTES} bytes")
                progress(partial.size, partial.whole)

            try:
                await body.receive(response, write)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise self._disk_full(partial, str(error.strerror)) from error
                raise FetchFailed(f"{partial.path} cannot be written: {error.strerror}") from error
        if partial.whole is not None and partial.size != partial.whole:
            size, whole = partial.size, partial.whole
            if size > whole:
                partial.forget()
            raise _Again(f"{size} bytes came instead of {whole}")

    def _begin(self, response: Any, url: str, partial: _Partial) -> bool:
        """Look at the answer's head; returns whether a body is to be read."""
        code = response.code
        first, whole = content_range(_header(response, b"content-range"))
        if code == 416 and whole is not None and whole == partial.size and partial.size:
            partial.whole = whole
            return False
        if code == 206 and first == partial.size and partial.size:
            partial.whole = whole if whole is not None else _plus(partial.size, response.length)
        elif code == 200:
            partial.begin(
                url, strong_validator(_header(response, b"etag"), _header(response, b"last-modified"))
            )
            partial.whole = None if response.length is UNKNOWN_LENGTH else int(response.length)
        elif code in (206, 416):
            partial.forget()
            raise _Again("the server continues at another place, so it begins anew")
        else:
            self._judge(code, response.phrase)
            raise _NextMirror(f"the server answers {code}")
        if (partial.whole or 0) > MAX_BYTES:
            raise _NextMirror(f"it is to have {partial.whole} bytes")
        return True

    def _disk_full(self, partial: _Partial, why: str) -> HostLacks:
        place = partial.path.parent.parent
        partial.forget()
        return HostLacks(
            f"the disk of {place} is full: {why}", "make room, or choose another disk with --store"
        )

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)


class _Body(Protocol):
    """Takes a response's body in pieces, and reads no further while one is being written."""

    transport: Any

    def __init__(self, clock: Any, timeout: float) -> None:
        self._clock = clock
        self._timeout = timeout
        self._buffer = bytearray()
        self._failure: Exception | None = None
        self._over = False
        self._abandoned = False
        self._waiting: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None

    def abandon(self) -> None:
        """Read nothing of it."""
        self._abandoned = True
        if self.transport is not None:
            self._end()

    async def receive(self, response: Any, write: Callable[[bytes], Any]) -> None:
        """Hand the whole body to ``write``, one piece after another.

        Raises:
            _Again: it ended early, or nothing came for a while.
        """
        self._restart()
        response.deliverBody(self)
        try:
            while True:
                if not self._buffer and not self._over:
                    self._waiting = Deferred()
                    await self._waiting
                data = bytes(self._buffer)
                self._buffer.clear()
                if data:
                    await write(data)
                    self._resume()
                elif self._over:
                    break
        finally:
            self._stop_timer()
            self._abandoned = True
            if not self._over and self.transport is not None:
                self._end()
        if self._failure is not None:
            raise _Again(_words(self._failure)) from self._failure

    def dataReceived(self, data: bytes) -> None:
        if self._abandoned:
            return
        self._buffer += data
        if len(self._buffer) >= CHUNK_BYTES:
            self._stop_timer()
            self.transport.pauseProducing()
        else:
            self._restart()
        if len(self._buffer) >= CHUNK_BYTES or self._waiting is not None:
            self._wake()

    def connectionMade(self) -> None:
        if self._abandoned:
            self._end()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_timer()
        self._over = True
        if not reason.check(ResponseDone) and self._failure is None:
            self._failure = (
                reason.value if isinstance(reason.value, Exception) else Exception(str(reason.value))
            )
        self._wake()

    def _end(self) -> None:
        # a body's transport has loseConnection, the connection below may have abortConnection
        abort = getattr(self.transport, "abortConnection", None) or self.transport.loseConnection
        abort()

    def _resume(self) -> None:
        if not self._over:
            self._restart()
            self.transport.resumeProducing()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def _restart(self) -> None:
        self._stop_timer()
        self._timer = self._clock.callLater(self._timeout, self._timed_out)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _timed_out(self) -> None:
        self._failure = _Again(f"nothing came for {self._timeout:g} s")
        self._over = True
        self._end()
        self._wake()


def _cancellable(deferred: Deferred[Any]) -> Deferred[Any]:
    """One that fails with CancelledError when it is cancelled, whatever the other one then fails with.

    A connection attempt has errors of its own for that, which would be taken for a reason to try again.
    """
    cancelled: list[bool] = []

    def cancel(_: Deferred[Any]) -> None:
        cancelled.append(True)
        deferred.cancel()

    mine: Deferred[Any] = Deferred(cancel)

    def forward(result: Any) -> None:
        if not mine.called:
            mine.callback(Failure(CancelledError()) if cancelled else result)

    deferred.addBoth(forward)
    return mine


def _header(response: Any, name: bytes) -> bytes | None:
    values = response.headers.getRawHeaders(name)
    value: bytes | None = values[-1] if values else None
    return value


def _plus(size: int, length: Any) -> int | None:
    return None if length is UNKNOWN_LENGTH else size + int(length)


def _words(error: BaseException) -> str:
    """An error of Twisted's in one line."""
    reasons = getattr(error, "reasons", None)
    if reasons:
        inner: Any = reasons[0]
        return _words(
            inner.value if isinstance(inner, Failure) and inner.value is not None else error.__class__()
        )
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300].rstrip(".")


def _write(file: Any, data: bytes) -> None:
    file.write(data)
    file.flush()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, which is on the disk then. Takes its time."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
