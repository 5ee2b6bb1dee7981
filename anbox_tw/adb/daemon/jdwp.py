"""``jdwp``, ``track-jdwp``, ``jdwp:PID``, ``track-app`` and the control socket that VMs connect to."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import main
from twisted.internet.interfaces import IProtocol, IPullProducer, IReadDescriptor
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb._jdwp import MAX_HELLO, ProcessInfo, encode_app_processes, parse_hello
from anbox_tw.adb._numbers import decimal
from anbox_tw.adb.daemon.shell import TextStream
from anbox_tw.adb.daemon.sockets import Inner, SocketStream
from anbox_tw.adb.streams import AdbStream
from anbox_tw.errors import AdbError, NetworkError, PeerError

__all__ = ["CONTROL_NAME", "JdwpHub"]

CONTROL_NAME = "\0jdwp-control"
"""Abstract name of the control socket; no padding."""
MAX_VMS = 4096
"""VMs at a time; a phone has some hundred."""
MAX_TRACKERS = 256
"""Streams that follow the list at a time, of either kind."""
TRACK_LIMIT = 0xFFFF
"""Largest frame: its length has four hex digits."""


@implementer(IReadDescriptor)
class _Vm:
    """A VM's connection; open as long as the VM lives."""

    def __init__(self, hub: JdwpHub, connection: socket.socket) -> None:
        self._hub = hub
        self._stream = connection.type == socket.SOCK_STREAM
        self._start = b""
        self.socket = connection
        self.info: ProcessInfo | None = None

    def fileno(self) -> int:
        return self.socket.fileno()

    def logPrefix(self) -> str:
        return "jdwp"

    def doRead(self) -> Any:
        try:
            data = self.socket.recv(MAX_HELLO)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        if self._stream:
            if self.info is not None:
                return None
            self._start += data
            if len(self._start) < 4:
                return None
            data = self._start[:4]
        try:
            info = parse_hello(data)
        except PeerError as error:
            self._hub._log.warn("closing a VM's connection: {error}", error=error)
            return main.CONNECTION_DONE
        if info != self.info:
            self.info = info
            self._hub._changed()
        return None

    def connectionLost(self, reason: Failure) -> None:
        self._hub._lost(self)

    def attach(self, fd: int) -> None:
        assert self.info is not None
        socket.send_fds(self.socket, [self.info.attach_byte], [fd])


@implementer(IReadDescriptor)
class _Listener:
    """One listening socket."""

    def __init__(self, hub: JdwpHub, listening: socket.socket) -> None:
        self._hub = hub
        self.socket = listening

    def fileno(self) -> int:
        return self.socket.fileno()

    def logPrefix(self) -> str:
        return "jdwp"

    def doRead(self) -> Any:
        with contextlib.suppress(OSError):
            connection, _ = self.socket.accept()
            self._hub._accepted(connection)

    def connectionLost(self, reason: Failure) -> None:
        self.socket.close()


@implementer(IPullProducer)
class _Tracker(Protocol):
    """A stream that gets each new list."""

    transport: AdbStream

    def __init__(self, hub: JdwpHub, render: Callable[[list[ProcessInfo]], bytes]) -> None:
        self._hub = hub
        self._render = render
        self._last: bytes | None = None

    def connectionMade(self) -> None:
        self._hub._trackers.add(self)
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        self.send()

    def stopProducing(self) -> None:
        pass

    def send(self) -> None:
        # A slow host gets the newest list when it has taken the one before: nothing piles up.
        if self.transport.queued:
            return
        data = self._render(self._hub.processes())
        if data != self._last:
            self._last = data
            self.transport.write(b"%04x" % len(data) + data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._hub._trackers.discard(self)


class JdwpHub:
    """Knows the VMs that are there and hands debuggers to them.

    Args:
        reactor: the reactor.
        name: address of the control socket; ``CONTROL_NAME`` on a device.
    """

    _log = Logger()

    def __init__(self, reactor: Any, name: str = CONTROL_NAME) -> None:
        self._reactor = reactor
        self._name = name
        self._listeners: list[_Listener] = []
        self._vms: set[_Vm] = set()
        self._trackers: set[_Tracker] = set()

    def start(self) -> None:
        """Listen for VMs.

        Both socket types share the name: VMs up to Android 7.1 use a stream, later ones packets.

        Raises:
            NetworkError: another adbd holds the name.
        """
        for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
            listening = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                listening.bind(self._name)
                listening.listen(4)
            except OSError as error:
                listening.close()
                self.stop()
                raise NetworkError(
                    f"cannot listen for Java VMs on {self._name.replace(chr(0), '@')}: {error.strerror}",
                    "another adbd may be running in this network namespace",
                ) from error
            listener = _Listener(self, listening)
            self._listeners.append(listener)
            self._reactor.addReader(listener)

    def stop(self) -> None:
        """Stop listening and let go of every VM."""
        for listener in self._listeners:
            self._reactor.removeReader(listener)
            listener.socket.close()
        self._listeners.clear()
        for vm in list(self._vms):
            self._reactor.removeReader(vm)
            self._lost(vm)

    def processes(self) -> list[ProcessInfo]:
        """The VMs that are there, by pid."""
        return sorted((vm.info for vm in self._vms if vm.info is not None), key=lambda info: info.pid)

    def list_once(self) -> IProtocol:
        """Serve ``jdwp``. An empty list just closes: adb 36 never acknowledges an empty packet."""
        return TextStream(_pids(self.processes()))

    def track(self) -> IProtocol:
        """Serve ``track-jdwp``."""
        self._check_room()
        return _Tracker(self, _pids)

    def track_apps(self) -> IProtocol:
        """Serve ``track-app``."""
        self._check_room()
        return _Tracker(self, _apps)

    def _check_room(self) -> None:
        if len(self._trackers) >= MAX_TRACKERS:
            raise AdbError(f"{MAX_TRACKERS} streams follow the list already")

    def attach(self, argument: str) -> Any:
        """Serve ``jdwp:PID``: a new socket pair, one end of which goes to the VM.

        Raises:
            AdbError: there is no such VM, or no debugger may attach to it.
        """
        pid = decimal(argument, (1 << 31) - 1)
        if pid is None:
            raise AdbError(f"not a pid: {argument[:40]!r}")
        vm = next((vm for vm in self._vms if vm.info is not None and vm.info.pid == pid), None)
        if vm is None or vm.info is None or not vm.info.debuggable:
            raise AdbError(f"there is no debuggable process {pid}")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                vm.attach(theirs.fileno())
            except OSError as error:
                raise AdbError(f"process {pid} takes no debugger now: {error.strerror}") from error
            ours.setblocking(False)
            inner = Inner()
            inner.pause_at_start = True
            factory = Factory()
            factory.buildProtocol = lambda _address: inner  # type: ignore[method-assign,assignment]
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
        return SocketStream(inner)

    def _accepted(self, connection: socket.socket) -> None:
        if len(self._vms) >= MAX_VMS:
            connection.close()
            return
        connection.setblocking(False)
        vm = _Vm(self, connection)
        self._vms.add(vm)
        self._reactor.addReader(vm)

    def _lost(self, vm: _Vm) -> None:
        self._vms.discard(vm)
        vm.socket.close()
        if vm.info is not None:
            self._changed()

    def _changed(self) -> None:
        for tracker in list(self._trackers):
            tracker.send()


def _pids(processes: list[ProcessInfo]) -> bytes:
    lines = "".join(f"{info.pid}\n" for info in processes if info.debuggable).encode()
    return lines if len(lines) <= TRACK_LIMIT else lines[: lines.rindex(b"\n", 0, TRACK_LIMIT) + 1]


def _apps(processes: list[ProcessInfo]) -> bytes:
    while len(data := encode_app_processes(processes)) > TRACK_LIMIT:
        processes = processes[: len(processes) * TRACK_LIMIT // len(data)]
    return data
