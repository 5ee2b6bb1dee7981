"""What the console is the console of, in its tests."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from anbox_tw.device import Device
from anbox_tw.device.injector import Injector
from anbox_tw.errors import AlreadyRunning, NetworkError
from anbox_tw.interfaces import IConsoleHost, IRedirections


@implementer(IRedirections)
class FakeRedirections:
    """Port 9 of the host is always taken."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, int, int]] = []

    def redirections(self) -> list[tuple[str, int, int]]:
        return self.kept

    def redirect(self, protocol: str, host_port: int, guest_port: int) -> None:
        if host_port == 9:
            raise AlreadyRunning("TCP port 9 is taken")
        self.kept.append((protocol, host_port, guest_port))

    def end_redirection(self, protocol: str, host_port: int) -> Deferred[None]:
        self.kept = [kept for kept in self.kept if kept[:2] != (protocol, host_port)]
        return succeed(None)


@implementer(IConsoleHost)
class FakeHost:
    """A device without a guest."""

    name = "default"

    def __init__(self, disabled: Iterable[str] = ()) -> None:
        self.clock = Clock()
        self.device = Device(disabled_sensors=disabled, clock=self.clock)
        self.injector = Injector(self.device, self.clock)
        self.redirections: FakeRedirections | None = FakeRedirections()
        self.running = True
        self.pausable = True
        self.stopped: list[str] = []

    def pause(self) -> Deferred[None]:
        if not self.pausable:
            raise NetworkError("it cannot be stopped")
        self.running = False
        return succeed(None)

    def resume(self) -> Deferred[None]:
        self.running = True
        return succeed(None)

    def stop(self, reason: str) -> None:
        self.stopped.append(reason)
