"""The framework's side: ``InstallerConnection`` of Android 7.0, with Deferreds.

Source: ``services/core/java/com/android/server/pm/Installer.java`` and ``core/java/com/android/internal/os/
InstallerConnection.java`` of Android 7.0. As there: the connection is made when it is first needed and kept; commands
go one after the other; when writing fails it connects once more and tries once more; when reading fails nothing is
repeated, for the command may have run.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, ensureDeferred
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.android.errors import InstalldError
from anbox_tw.android.installd._commands import NULL
from anbox_tw.android.installd._framing import MAX_TEXT_BYTES, MessageReader, encode_message
from anbox_tw.errors import PeerError, TimedOut

__all__ = ["AppSize", "InstallerConnection"]

COMMAND_TIMEOUT_S = 900.0
"""How long an answer may take; the original waits for ever. Longer than any tool of the daemon's may."""

PING_PAUSE_S = 1.0
"""Between two tries while the daemon is not up."""

_SPACES = " \t\n\v\f\r\0"


class AppSize(tuple[int, int, int, int]):
    """Bytes of ``code``, ``data``, ``cache`` and ``asec``."""

    __slots__ = ()

    @property
    def code(self) -> int:
        """The program."""
        return self[0]

    @property
    def data(self) -> int:
        """What it keeps."""
        return self[1]

    @property
    def cache(self) -> int:
        """What it can lose."""
        return self[2]


class _Link(Protocol):
    """One connection: one request under way at most."""

    transport: Any

    def __init__(self) -> None:
        self._reader = MessageReader()
        self._waiting: Deferred[bytes] | None = None
        self.alive = False

    def connectionMade(self) -> None:
        self.alive = True

    def usable(self) -> bool:
        """Whether a write would not fail: the peer may have gone without the reactor having seen it yet."""
        if not self.alive:
            return False
        try:
            return bool(self.transport.getHandle().recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except (OSError, AttributeError):
            return not hasattr(self.transport, "getHandle")

    def ask(self, message: bytes) -> Deferred[bytes]:
        self._waiting = Deferred()
        self.transport.write(message)
        return self._waiting

    def dataReceived(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            text = self._reader.next()
        except PeerError as error:
            self._fail(Failure(InstalldError(f"installd's reply cannot be read: {error.cause}")))
            self.transport.abortConnection()
            return
        if text is not None:
            waiting, self._waiting = self._waiting, None
            if waiting is None:
                # an answer to nothing: what follows could be taken for the next command's
                self.transport.abortConnection()
                self.alive = False
            else:
                waiting.callback(text)

    def _fail(self, failure: Failure) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.errback(failure)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.alive = False
        self._fail(Failure(InstalldError(f"the connection to installd was lost: {reason.getErrorMessage()}")))


class _LinkFactory(Factory):
    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> _Link:
        return _Link()


class InstallerConnection:
    """A client of installd."""

    log = Logger()

    def __init__(
        self, reactor: Any, endpoint: IStreamClientEndpoint, *, timeout: float = COMMAND_TIMEOUT_S
    ) -> None:
        """Nothing is connected before the first command.

        Args:
            reactor: an ``IReactorTime``.
            endpoint: where installd is, usually ``android:installd:namespace=reserved``.
            timeout: seconds an answer may take.
        """
        self._clock = reactor
        self._endpoint = endpoint
        self._timeout = timeout
        self._link: _Link | None = None
        self._lock = DeferredLock()

    def execute(self, command: str, *arguments: str | int | None) -> Deferred[list[str]]:
        """Run one command.

        Args:
            command: its name.
            arguments: ``None`` and empty text go as ``!``.

        Returns:
            Fires with the words behind a result of 0.

        Raises:
            InstalldError: (in the Deferred) an argument cannot be sent, installd is not there, its connection broke,
                or it answered another number, which is ``result``.
        """
        return ensureDeferred(self._execute(command, arguments))

    async def _execute(self, command: str, arguments: tuple[str | int | None, ...]) -> list[str]:
        words = [command]
        for argument in arguments:
            word = "" if argument is None else str(argument)
            if word == NULL or any(character in word for character in _SPACES):
                raise InstalldError(
                    f"invalid argument {word!r} of {command}", "an argument has no white space and is not '!'"
                )
            words.append(word or NULL)
        text = " ".join(words).encode("utf-8", "surrogateescape")
        if len(text) > MAX_TEXT_BYTES:
            raise InstalldError(
                f"{command} would be {len(text)} bytes long, at most {MAX_TEXT_BYTES} are allowed"
            )
        await self._lock.acquire()
        try:
            reply = await self._transact(encode_message(text))
        finally:
            self._lock.release()
        parts = reply.decode("utf-8", "replace").split(" ")
        try:
            result = int(parts[0])
        except ValueError:
            result = -1
        if result != 0:
            raise InstalldError(
                f"failed to execute {command} {' '.join(words[1:])}: {result}",
                "installd's log has the reason",
                result=result,
            )
        return parts[1:]

    async def _transact(self, message: bytes) -> bytes:
        # a connection that has ended meanwhile is what a failed write is in the original
        link = self._link
        if link is None or not link.usable():
            self.disconnect()
            link = await self._connect()
        try:
            answer = link.ask(message)
            return await answer.addTimeout(self._timeout, self._clock, onTimeoutCancel=self._late)
        except (CancelledError, InstalldError, TimedOut):
            self.disconnect()
            raise

    def _late(self, result: bytes | Failure, timeout: float) -> bytes | Failure:
        raise TimedOut(f"installd did not answer within {timeout:g} s")

    async def _connect(self) -> _Link:
        try:
            link: Any = await self._endpoint.connect(_LinkFactory())
        except CancelledError:
            raise
        except Exception as error:
            raise InstalldError(
                f"cannot connect to installd: {error}", "start 'twistd anbox-installd'"
            ) from error
        self._link = link
        assert isinstance(link, _Link)
        return link

    def disconnect(self) -> None:
        """Close the connection; the next command makes a new one."""
        link, self._link = self._link, None
        if link is not None:
            link.alive = False
            link.transport.abortConnection()

    def close(self) -> Deferred[None]:
        """Close the connection for good, once a command under way is answered."""

        async def wait() -> None:
            await self._lock.acquire()
            self.disconnect()
            self._lock.release()

        return ensureDeferred(wait())

    def wait_for_connection(self, *, timeout: float | None = None) -> Deferred[None]:
        """Ping until installd answers, a second apart; without ``timeout`` for ever, as the framework does.

        Raises:
            TimedOut: (in the Deferred) it did not answer within ``timeout`` seconds.
        """

        async def loop() -> None:
            deadline = None if timeout is None else self._clock.seconds() + timeout
            while True:
                try:
                    await self.execute("ping")
                    return
                except InstalldError as error:
                    if deadline is not None and self._clock.seconds() + PING_PAUSE_S > deadline:
                        raise TimedOut(f"installd did not come up: {error.cause}", error.cure) from error
                await deferLater(self._clock, PING_PAUSE_S)

        return ensureDeferred(loop())

    def ping(self) -> Deferred[list[str]]:
        """Ask whether it is there."""
        return self.execute("ping")

    def execute_boolean(self, command: str, *arguments: str | int | None) -> Deferred[bool]:
        """Run a command that answers ``true`` or ``false``.

        Raises:
            InstalldError: (in the Deferred) as ``execute``, or the answer is neither.
        """

        async def run() -> bool:
            words = await self.execute(command, *arguments)
            if words not in (["true"], ["false"]):
                raise InstalldError(f"{command} answered {' '.join(words)!r}, neither true nor false")
            return words == ["true"]

        return ensureDeferred(run())

    def create_app_data(
        self,
        uuid: str | None,
        pkgname: str,
        userid: int,
        flags: int,
        appid: int,
        seinfo: str,
        target_sdk: int,
    ) -> Deferred[list[str]]:
        """Make an application's homes."""
        return self.execute("create_app_data", uuid, pkgname, userid, flags, appid, seinfo, target_sdk)

    def destroy_app_data(
        self, uuid: str | None, pkgname: str, userid: int, flags: int, ce_data_inode: int = 0
    ) -> Deferred[list[str]]:
        """Delete an application's homes."""
        return self.execute("destroy_app_data", uuid, pkgname, userid, flags, ce_data_inode)

    def clear_app_data(
        self, uuid: str | None, pkgname: str, userid: int, flags: int, ce_data_inode: int = 0
    ) -> Deferred[list[str]]:
        """Delete what is in an application's homes."""
        return self.execute("clear_app_data", uuid, pkgname, userid, flags, ce_data_inode)

    def get_app_size(
        self, uuid: str | None, pkgname: str, userid: int, flags: int, ce_data_inode: int, code_path: str
    ) -> Deferred[AppSize]:
        """Sizes in bytes."""

        async def run() -> AppSize:
            words = await self.execute("get_app_size", uuid, pkgname, userid, flags, ce_data_inode, code_path)
            try:
                code, data, cache, asec = map(int, words)
            except ValueError as error:
                raise InstalldError(f"get_app_size answered {' '.join(words)!r}, not four numbers") from error
            return AppSize((code, data, cache, asec))

        return ensureDeferred(run())

    def get_app_data_inode(self, uuid: str | None, pkgname: str, userid: int, flags: int) -> Deferred[int]:
        """The inode of an application's credential-encrypted home."""

        async def run() -> int:
            words = await self.execute("get_app_data_inode", uuid, pkgname, userid, flags)
            if len(words) != 1 or not words[0].isdigit():
                raise InstalldError(f"get_app_data_inode answered {' '.join(words)!r}, not a number")
            return int(words[0])

        return ensureDeferred(run())
