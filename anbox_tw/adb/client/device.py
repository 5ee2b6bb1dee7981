"""A device and what can be done with it, whichever way leads to it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred

from anbox_tw.adb.client import _trees
from anbox_tw.adb.client._errors import InstallFailed, RemoteFailure, StreamEnded
from anbox_tw.adb.client.links import CONTROL_TIMEOUT_S, DirectLink, ILink, ServerLink, SmartSocket
from anbox_tw.adb.client.shell import ShellResult, ShellSession
from anbox_tw.adb.client.streams import STALL_TIMEOUT_S, ByteStream, deferred, with_timeout
from anbox_tw.adb.client.sync import Progress, RemoteStat, SyncSession
from anbox_tw.errors import AdbError, PeerError

__all__ = ["Device"]

INSTALL_TIMEOUT_S = 300.0
"""How long a package manager may work on a package once it has all of it."""


class Device:
    """One device.

    Every operation returns a Deferred, which can be awaited. Cancelling it closes its stream.

    Args:
        reactor: the reactor.
        link: the way to it.
    """

    def __init__(self, reactor: Any, link: ILink) -> None:
        self._reactor = reactor
        self.link = link
        self._features: frozenset[str] | None = None

    def __repr__(self) -> str:
        return f"<Device {self.link.name}>"

    # ------------------------------------------------------------------- basics

    @deferred
    async def features(self) -> frozenset[str]:
        """Names of what the device can do; asked once."""
        if self._features is None:
            self._features = await self.link.features()
        return self._features

    @deferred
    async def open(
        self, service: str | bytes, *, stall_timeout: float | None = STALL_TIMEOUT_S
    ) -> ByteStream:
        """Open any service of the device.

        Args:
            service: its name, for example ``tcp:80`` or ``localabstract:x``.
            stall_timeout: seconds without a byte after which a read fails; None for never.

        Raises:
            RemoteFailure: the device does not serve it.
        """
        data = os.fsencode(service) if isinstance(service, str) else service
        return await self.link.open(data, stall_timeout)

    async def _text(self, service: str, timeout: float = CONTROL_TIMEOUT_S) -> str:
        """What a service says until its end."""
        stream = await self.open(service, stall_timeout=timeout)
        try:
            return (await stream.read_all(1 << 20)).decode("utf-8", "replace")
        finally:
            stream.close()

    # -------------------------------------------------------------------- shell

    @deferred
    async def open_shell(
        self,
        command: str = "",
        *,
        pty: bool | None = None,
        term: str | None = None,
        stall_timeout: float | None = None,
    ) -> ShellSession:
        """Start a command or an interactive shell.

        Args:
            command: for the device's shell; empty for an interactive one.
            pty: with a terminal, which joins both outputs; by default only for an interactive shell.
            term: value of ``TERM``.
            stall_timeout: seconds without output after which reading fails; None for never.
        """
        if "shell_v2" not in await self.features():
            stream = await self.open(f"shell:{command}", stall_timeout=stall_timeout)
            return ShellSession(stream, framed=False)
        kind = "pty" if (pty if pty is not None else not command) else "raw"
        words = ["shell", "v2", *([f"TERM={term}"] if term else []), kind]
        stream = await self.open(f"{','.join(words)}:{command}", stall_timeout=stall_timeout)
        return ShellSession(stream, framed=True)

    @deferred
    async def shell(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float | None = STALL_TIMEOUT_S,
        on_output: Callable[[int, bytes], None] | None = None,
    ) -> ShellResult:
        """Run a command to its end.

        Args:
            command: a line for the device's shell, or words, which are quoted.
            stdin: its input.
            timeout: seconds for all of it; None for no limit.
            on_output: gets (1 or 2, bytes) instead of their being collected.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        work = Deferred.fromCoroutine(self._run(line, stdin, on_output))
        return await with_timeout(self._reactor, work, timeout, f"the command {line[:60]!r}")

    async def _run(
        self, line: str, stdin: bytes, on_output: Callable[[int, bytes], None] | None
    ) -> ShellResult:
        session = await self.open_shell(line, pty=False)
        feeding = Deferred.fromCoroutine(session.feed(stdin))
        feeding.addErrback(lambda _: None)  # the reading side tells why
        try:
            return await session.collect(on_output)
        finally:
            feeding.cancel()
            session.close()

    @deferred
    async def exec_out(self, command: str, *, timeout: float | None = STALL_TIMEOUT_S) -> bytes:
        """Run a command and return its output as it is, both outputs joined."""
        stream = await self.open(f"exec:{command}", stall_timeout=timeout)
        try:
            return await stream.read_all()
        finally:
            stream.abort()

    @deferred
    async def exec_in(self, command: str, data: bytes) -> None:
        """Run a command with ``data`` as its input. ADB has no way to learn what becomes of it."""
        stream = await self.open(f"exec:{command}")
        try:
            for start in range(0, len(data), 1 << 20):
                stream.write(data[start : start + (1 << 20)])
                await stream.drain()
            stream.close()
            await with_timeout(self._reactor, stream.when_closed(), STALL_TIMEOUT_S, "closing the stream")
        except BaseException:
            stream.abort()
            raise

    @deferred
    async def getprop(self, name: str) -> str:
        """One system property; empty if it is not set."""
        return (await self.shell(["getprop", name])).text.rstrip("\r\n")

    # -------------------------------------------------------------------- files

    @deferred
    async def sync(self) -> SyncSession:
        """A stream for many file operations; end it with ``finish`` or ``abort``."""
        features = await self.features()
        return SyncSession(self._reactor, await self.open("sync:"), features)

    @deferred
    async def stat(self, path: str, *, follow: bool = True) -> RemoteStat:
        """Look at a file; a missing one gives ``exists`` False."""
        session = await self.sync()
        try:
            return await session.stat(path, follow=follow)
        finally:
            await _quietly(session)

    @deferred
    async def listdir(self, path: str) -> list[RemoteStat]:
        """The entries of a directory; none if it cannot be read."""
        session = await self.sync()
        try:
            return await session.listdir(path)
        finally:
            await _quietly(session)

    @deferred
    async def read_file(self, path: str, limit: int = 64 << 20) -> bytes:
        """The content of a small file."""
        session = await self.sync()
        try:
            return await session.read_file(path, limit)
        finally:
            await _quietly(session)

    @deferred
    async def push(
        self,
        source: str | Sequence[str],
        target: str,
        *,
        compression: str = "any",
        dry_run: bool = False,
        resume: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> int:
        """Copy files or trees to the device.

        Args:
            source: one local path or several.
            target: a path on the device; where it is a directory, what is pushed goes into it.
            compression: ``any``, ``none``, ``brotli``, ``lz4`` or ``zstd``.
            dry_run: the device throws everything away.
            resume: leave out files that are there with the same size and time.
            progress: called as bytes go.

        Returns:
            How many files were copied.
        """
        session = await self.sync()
        try:
            sources = [source] if isinstance(source, str) else source
            count = await _trees.push(
                self._reactor, session, sources, target, compression, dry_run, resume, progress
            )
            await session.finish()
            return count
        except BaseException:
            session.abort()
            raise

    @deferred
    async def pull(
        self,
        source: str | Sequence[str],
        target: str,
        *,
        compression: str = "none",
        preserve: bool = True,
        resume: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> int:
        """Copy files or trees from the device.

        Args:
            source: one path on the device or several.
            target: a local path; where it is a directory, what is pulled goes into it.
            compression: ``any``, ``none``, ``brotli``, ``lz4`` or ``zstd``.
            preserve: keep time and permission bits.
            resume: leave out files that are there with the same size and time; needs ``preserve``.
            progress: called as bytes come.

        Returns:
            How many files were copied.
        """
        session = await self.sync()
        try:
            sources = [source] if isinstance(source, str) else source
            count = await _trees.pull(
                self._reactor, session, sources, target, compression, preserve, resume, progress
            )
            await session.finish()
            return count
        except BaseException:
            session.abort()
            raise

    # ------------------------------------------------------------------ forwards

    async def _smart_reply(self, request: str) -> SmartSocket:
        """Send a forward request to the server; its two OKAYs have been read."""
        link = cast(ServerLink, self.link)
        smart = await SmartSocket.connect(self._reactor, link.endpoint)
        try:
            await smart.request(f"{link.prefix}:{request}")
            if not request.startswith("list"):
                await smart.status()
        except BaseException:
            smart.stream.abort()
            raise
        return smart

    @deferred
    async def forward(self, local: str, remote: str, *, rebind: bool = True) -> int | None:
        """Lead connections to ``local`` on this machine to ``remote`` on the device.

        Args:
            local: such as ``tcp:8080``, ``tcp:0`` or ``localabstract:x``.
            remote: such as ``tcp:80``, ``localabstract:x`` or ``jdwp:123``.
            rebind: replace a forward that is there.

        Returns:
            The port that was chosen for ``tcp:0``, else None. Through a server the forward is the
            server's; straight to a device it lasts as long as the connection.
        """
        word = "forward:" if rebind else "forward:norebind:"
        request = f"{word}{local};{remote}"
        if isinstance(self.link, DirectLink):
            return _port(await self.link.forwards.run(request))
        smart = await self._smart_reply(request)
        try:
            if local != "tcp:0":
                return None
            return _number(await smart.body())
        finally:
            smart.stream.close()

    @deferred
    async def list_forwards(self) -> list[tuple[str, str, str]]:
        """(device, local, remote) of each forward."""
        if isinstance(self.link, DirectLink):
            data = (await self.link.forwards.run("list-forward"))[4:]
            return [(self.link.name, *line[1:]) for line in _lines(data)]
        smart = await self._smart_reply("list-forward")
        try:
            return _lines(await smart.body())
        finally:
            smart.stream.close()

    @deferred
    async def remove_forward(self, local: str | None = None) -> None:
        """End one forward, or with None all."""
        request = f"killforward:{local}" if local else "killforward-all"
        if isinstance(self.link, DirectLink):
            await self.link.forwards.run(request)
            return
        (await self._smart_reply(request)).stream.close()

    @deferred
    async def reverse(self, remote: str, local: str, *, rebind: bool = True) -> int | None:
        """Lead connections to ``remote`` on the device to ``local`` on this machine.

        Returns:
            The port that was chosen for ``tcp:0``, else None.
        """
        if isinstance(self.link, DirectLink):
            self.link.allowed.add(local)
        word = "forward:" if rebind else "forward:norebind:"
        return _port(await self._reverse(f"{word}{remote};{local}"))

    @deferred
    async def list_reverses(self) -> list[tuple[str, str, str]]:
        """(connection, remote, local) of each reverse forward."""
        data = await self._reverse("list-forward")
        return _lines(data[4:])

    @deferred
    async def remove_reverse(self, remote: str | None = None) -> None:
        """End one reverse forward, or with None all."""
        await self._reverse(f"killforward:{remote}" if remote else "killforward-all")

    async def _reverse(self, request: str) -> bytes:
        stream = await self.open(f"reverse:{request}", stall_timeout=CONTROL_TIMEOUT_S)
        try:
            data = await stream.read_all(1 << 20)
        finally:
            stream.close()
        if data[:4] == b"FAIL":
            raise RemoteFailure(data[8:].decode("utf-8", "replace"))
        return data

    # ----------------------------------------------------------------- packages

    @deferred
    async def install(
        self,
        path: str | Sequence[str],
        options: Sequence[str] = (),
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Install a package from one APK, or from several that belong together.

        Args:
            path: local files.
            options: for the package manager, such as ``-r`` or ``-t``.
            progress: called as bytes go.

        Raises:
            InstallFailed: with what the package manager said.
        """
        paths = [path] if isinstance(path, str) else list(path)
        sizes = [os.stat(one).st_size for one in paths]
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            if progress is not None:
                progress(Progress(paths[0], done, sum(sizes)))

        if len(paths) == 1:
            await self._install_stream(["install", *options, "-S", str(sizes[0])], paths[0], count)
            return
        created = await self._package(["install-create", *options, "-S", str(sum(sizes))])
        number = created.partition("[")[2].partition("]")[0]
        try:
            for index, (one, size) in enumerate(zip(paths, sizes, strict=True)):
                name = f"{index}_{os.path.basename(one)}"
                await self._install_stream(["install-write", "-S", str(size), number, name, "-"], one, count)
            await self._package(["install-commit", number])
        except BaseException:
            abandoning = Deferred.fromCoroutine(self._package(["install-abandon", number]))
            abandoning.addErrback(lambda _: None)  # the session is gone already, or the device is
            raise

    @deferred
    async def uninstall(self, name: str, options: Sequence[str] = ()) -> None:
        """Remove a package.

        Raises:
            InstallFailed: with what the package manager said.
        """
        await self._package(["uninstall", *options, name])

    @deferred
    async def packages(self) -> list[str]:
        """Names of the installed packages."""
        text = (await self.shell("pm list packages")).text
        return sorted(line.partition(":")[2] for line in text.splitlines() if line.startswith("package:"))

    async def _open_package(self, arguments: Sequence[str]) -> ByteStream:
        features = await self.features()
        if "abb_exec" in features:
            return await self.open(
                "\0".join(["abb_exec:package", *arguments]), stall_timeout=INSTALL_TIMEOUT_S
            )
        if "cmd" not in features:
            raise AdbError(
                "this device can only install with pm, from a file", "push it, then run pm install"
            )
        return await self.open(f"exec:cmd package {shlex.join(arguments)}", stall_timeout=INSTALL_TIMEOUT_S)

    async def _package(self, arguments: Sequence[str]) -> str:
        stream = await self._open_package(arguments)
        return await _package_answer(stream)

    async def _install_stream(
        self, arguments: Sequence[str], path: str, count: Callable[[int], None]
    ) -> None:
        stream = await self._open_package(arguments)
        try:
            with open(path, "rb") as file:
                while not stream.available and not stream.ended:
                    data: bytes = await _trees.in_thread(self._reactor, file.read, 1 << 20)
                    if not data:
                        break
                    stream.write(data)
                    count(len(data))
                    await stream.drain()
        except BaseException:
            stream.abort()
            raise
        await _package_answer(stream)

    # -------------------------------------------------------------- the device

    @deferred
    async def logcat(self, arguments: str = "") -> ByteStream:
        """Follow the log; read the stream's bytes, and close it when done."""
        session = await self.open_shell(f"logcat {arguments}".strip(), pty=False)
        if not session.framed:
            return session.stream
        relayed = _ShellOutput(session)
        return cast(ByteStream, relayed)

    @deferred
    async def reboot(self, mode: str = "") -> str:
        """Restart the device; ``mode`` is empty, ``bootloader``, ``recovery``... Returns what it says."""
        return await self._text(f"reboot:{mode}")

    @deferred
    async def root(self) -> str:
        """Restart adbd as root. Returns what it says."""
        return await self._text("root:")

    @deferred
    async def unroot(self) -> str:
        """Restart adbd without root. Returns what it says."""
        return await self._text("unroot:")

    @deferred
    async def remount(self, arguments: str = "") -> str:
        """Make system partitions writable. Returns what the device says."""
        if "remount_shell" in await self.features():
            result = await self.shell(f"remount {arguments}".strip())
            return result.text + result.stderr.decode("utf-8", "replace")
        return await self._text(f"remount:{arguments}")

    @deferred
    async def tcpip(self, port: int) -> str:
        """Have adbd listen on a TCP port. Returns what it says."""
        return await self._text(f"tcpip:{port}")

    @deferred
    async def usb(self) -> str:
        """Have adbd listen on USB. Returns what it says."""
        return await self._text("usb:")

    @deferred
    async def jdwp(self) -> list[int]:
        """Pids of the processes that a debugger can attach to."""
        return [_number(line.encode()) for line in (await self._text("jdwp")).split()]

    @deferred
    async def state(self) -> str:
        """``device``, ``recovery``, ``offline``..."""
        if isinstance(self.link, DirectLink):
            return self.link.transport.state
        return (await cast(ServerLink, self.link).query("get-state")).decode()

    @deferred
    async def serial(self) -> str:
        """Its serial; for a device without a server, the address it was reached at."""
        if isinstance(self.link, DirectLink):
            return self.link.name
        return (await cast(ServerLink, self.link).query("get-serialno")).decode()

    @deferred
    async def wait_for(self, state: str = "device", *, timeout: float = 60.0) -> None:
        """Wait until the device is in a state, such as ``device`` or ``disconnect``; needs a server."""
        if isinstance(self.link, DirectLink):
            await self.link.transport.when_online(timeout)
            return
        link = cast(ServerLink, self.link)
        smart = await SmartSocket.connect(self._reactor, link.endpoint, None)
        work = Deferred.fromCoroutine(self._wait(smart, f"{link.prefix}:wait-for-any-{state}"))
        try:
            await with_timeout(self._reactor, work, timeout, f"waiting for {link.name} to be {state}")
        finally:
            smart.stream.abort()

    async def _wait(self, smart: SmartSocket, request: str) -> None:
        await smart.request(request)
        await smart.status()

    @deferred
    async def close(self) -> None:
        """End the connection to a device without a server; nothing to do with one."""
        if isinstance(self.link, DirectLink):
            await self.link.close()


class _ShellOutput:
    """The output of a shell session as a plain stream of bytes."""

    def __init__(self, session: ShellSession) -> None:
        self._session = session

    async def read(self, limit: int = 1 << 30) -> bytes:
        item = await self._session.read()
        return bytes(item[1]) if item is not None else b""

    async def read_all(self, limit: int = 64 << 20) -> bytes:
        result = await self._session.collect(limit=limit)
        return result.stdout

    def close(self) -> None:
        self._session.close()

    abort = close


async def _quietly(session: SyncSession) -> None:
    """End a session whose work is done or has failed."""
    if session.stream.ended:
        session.abort()
    else:
        await session.finish()


async def _package_answer(stream: ByteStream) -> str:
    try:
        text = (await stream.read_all(1 << 20)).decode("utf-8", "replace").strip()
    finally:
        stream.abort()
    if text.startswith("Success"):
        return text
    raise InstallFailed(text or "the package manager says nothing")


def _port(data: bytes) -> int | None:
    """The port in ``OKAY`` + length + digits."""
    if data[:4] != b"OKAY":
        raise StreamEnded(f"the device answers {data[:20]!r}")
    return _number(data[8:]) if len(data) > 8 else None


def _number(digits: bytes) -> int:
    """A port or pid in decimal digits, as the other end says it."""
    if not digits.isdigit() or len(digits) > 10:
        raise PeerError(f"the other end says {digits[:20]!r} where a number belongs")
    return int(digits)


def _lines(data: bytes) -> list[tuple[str, str, str]]:
    found = []
    for line in data.decode("utf-8", "replace").splitlines():
        fields = line.split(" ", 2)
        if len(fields) == 3:
            found.append((fields[0], fields[1], fields[2]))
    return found
