"""``opengles``: hands the guest's drawing to a renderer that runs somewhere else.

The stream begins with four bytes of client flags and is the renderer's own from there (GLES and renderControl commands of
``android-emugl``). It is passed on as it is, flags included: that is what the emulator's and Anbox's renderers read.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.logger import Logger
from zope.interface import implementer

from anbox_tw.errors import ConfigError
from anbox_tw.interfaces import IPipeService
from anbox_tw.network import Connections, EndpointConnector, ForwardCreator, RetryPolicy

__all__ = ["OpenGlesService"]

CONNECTION_LIMIT = 1024
"""Every drawing thread of every application has one."""


@implementer(IPipeService)
class OpenGlesService:
    """Relays each connection to a new one of the renderer.

    Args:
        reactor: connects.
        renderer: a Twisted client endpoint such as ``unix:/run/renderer.sock`` or ``tcp:127.0.0.1:22468``; empty for none.

    Raises:
        ConfigError: it is no endpoint.
    """

    name = "opengles"
    _log = Logger()

    def __init__(self, reactor: Any, renderer: str = "") -> None:
        self.renderer = renderer
        self.connections = Connections(CONNECTION_LIMIT, name=self.name, clock=reactor)
        self._forward: ForwardCreator | None = None
        if renderer:
            try:
                endpoint = clientFromString(reactor, renderer)
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigError(
                    f"the renderer {renderer!r} is no endpoint: {error}",
                    "for example unix:/run/renderer.sock",
                ) from error
            connector = EndpointConnector(
                reactor, endpoint, retry=RetryPolicy.once(), description=f"the renderer {renderer}"
            )
            self._forward = ForwardCreator(
                connector, clock=reactor, name="opengles", registry=self.connections
            )

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Connect to the renderer; refused when there is none."""
        if self._forward is None:
            self._log.info("A guest wants to draw (opengles), and there is no renderer: see --renderer")
            return None
        return self._forward.create_connection_for(address)
