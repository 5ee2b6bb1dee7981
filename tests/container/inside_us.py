"""A way into a container that is this very process: the real helper, listener and wire without a container."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from twisted.internet.defer import Deferred

from anbox_tw.container.authority import Caller
from anbox_tw.container.guest_sockets.gate import GuestGate, HelperProcess
from anbox_tw.container.guest_sockets.service import GuestSocketCreator
from anbox_tw.container.probes import helper_command
from anbox_tw.container.process_plan import PythonFacts
from anbox_tw.errors import AnboxError
from anbox_tw.network import Connections, UnixListener


class InsideUs:
    """The listener of a manager whose one container has our own namespaces and root.

    Attributes:
        path: of the listener's socket.
        refuse: raised instead of letting anybody in.
        callers: who asked, and for which instance.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.directory = tempfile.mkdtemp(prefix="gs-")
        self.path = f"{self.directory}/guests"
        self.refuse: AnboxError | None = None
        self.callers: list[tuple[Caller, str]] = []
        self.hellos = Connections(8, name="guest sockets", clock=reactor)
        creator = GuestSocketCreator(reactor, self.gate_of)
        self.listener = UnixListener(reactor, self.path, creator, registry=self.hellos)

    def gate_of(self, caller: Caller, instance: str) -> GuestGate:
        self.callers.append((caller, instance))
        if self.refuse is not None:
            raise self.refuse
        return self.gate

    def start(self) -> Deferred[bool]:
        """Listen; fires with whether the helper is ready."""
        self.listener.startService()
        return self.start_container()

    def start_container(self) -> Deferred[bool]:
        """Start a helper, as a container that starts does."""
        self.gate = GuestGate(self._reactor, "test")
        self.helper = HelperProcess(self._reactor, self.gate)
        self.helper.spawn(helper_command(PythonFacts.here()), {"PATH": os.environ["PATH"]})
        return self.helper.enter(os.getpid())

    async def stop(self) -> None:
        """End all."""
        await self.listener.stopService()
        await self.helper.stop()
        os.rmdir(self.directory)
