"""What netd's tests share."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from anbox_tw.netd.listener import FrameworkListener, SocketClient
from anbox_tw.network.credentials import Credentials


class ClientTransport(StringTransport):
    """A transport in memory with credentials and an abort."""

    def __init__(self, uid: int = 0) -> None:
        super().__init__()
        self.peer_credentials = Credentials(1234, uid, uid)
        self.aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True


def joined(listener: FrameworkListener, uid: int = 0) -> tuple[SocketClient, ClientTransport]:
    """A client of ``listener`` over memory."""
    client = listener.create_connection_for(None)  # type: ignore[arg-type]
    transport = ClientTransport(uid)
    client.makeConnection(transport)
    return client, transport


def said(transport: Any) -> list[str]:
    """The text messages written since the last call."""
    data = transport.value()
    transport.clear()
    return [piece.decode("utf-8", "surrogateescape") for piece in data.split(b"\0")[:-1]]


def new_listener(**options: Any) -> tuple[FrameworkListener, Clock]:
    clock = Clock()
    return FrameworkListener("test", clock=clock, **options), clock
