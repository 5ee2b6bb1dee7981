"""The parsers behind ``android:`` and ``android-control:``, light enough to stand in a plugin file."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import (
    IStreamClientEndpoint,
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface import implementer

__all__ = ["AndroidControlParser", "AndroidParser"]


@implementer(IPlugin, IStreamServerEndpointStringParser, IStreamClientEndpointStringParserWithReactor)
class AndroidParser:
    """``android:NAME``, a server and a client."""

    prefix = "android"

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamServerEndpoint:
        """Build the endpoint that listens."""
        from anbox_tw.android.endpoints import parse_server

        return parse_server(reactor, *args, **kwargs)

    def parseStreamClient(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamClientEndpoint:
        """Build the endpoint that connects."""
        from anbox_tw.android.endpoints import parse_client

        return parse_client(reactor, *args, **kwargs)


@implementer(IPlugin, IStreamServerEndpointStringParser)
class AndroidControlParser:
    """``android-control:NAME``, a server only."""

    prefix = "android-control"

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamServerEndpoint:
        """Build the endpoint that adopts init's socket."""
        from anbox_tw.android.endpoints import parse_control_server

        return parse_control_server(reactor, *args, **kwargs)
