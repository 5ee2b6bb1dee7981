"""The network ground of anbox-tw inside another Twisted application: each part once, in one small program.

Run it with::

    twistd -n -y tap/embedding.tac

It is a web site (the "other application") that shows the live connections of a few sockets below the runtime directory:

* ``who`` answers each line with who asked (UNIX listener, `SocketConnection`, peer credentials, a limit);
* ``one`` serves a single client at a time, ``null`` nobody (the other creators);
* ``file`` passes an open file to who connects (file descriptor passing);
* a TCP port forwards to ``who`` (port claim, TCP listener, connector with retry, relay);
* a standing connection asks ``who`` once for each time it is made (connector as a service).

Nothing here touches signals, the reactor's life or global state: the application keeps those.
"""

import json
import os

from twisted.application.service import Application, MultiService
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer

from anbox_tw.errors import PeerError
from anbox_tw.interfaces import IMessageProcessor
from anbox_tw.network import (
    Connections,
    DelegateCreator,
    EndpointListener,
    ForwardCreator,
    NullCreator,
    PortAllocator,
    ProcessorCreator,
    RetryPolicy,
    RuntimePaths,
    SingleClientCreator,
    SocketConnection,
    TcpListener,
    UnixConnector,
    UnixListener,
    describe_process,
    peer_credentials,
    send_fds,
)

log = Logger("embedding")

MAX_LINE_BYTES = 1024  # what a peer may send without a line end


@implementer(IMessageProcessor)
class Who:
    """Answers each line with the asker's credentials and the line."""

    def __init__(self, sender: SocketConnection) -> None:
        self.sender = sender
        self.buffer = b""

    def process_data(self, data: bytes) -> None:
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        if len(self.buffer) > MAX_LINE_BYTES:
            raise PeerError(f"a line of more than {MAX_LINE_BYTES} bytes")
        who = peer_credentials(self.sender.transport)
        for line in lines:
            answer = {
                "uid": who.uid,
                "process": describe_process(who.pid),
                "line": line.decode(errors="replace"),
            }
            self.sender.send(json.dumps(answer).encode() + b"\n")

    def connection_lost(self, reason) -> None:
        log.info("an asker left: {reason}", reason=reason.getErrorMessage())


class Greeter(Protocol):
    """What the single client gets."""

    def connectionMade(self) -> None:
        self.transport.write(b"you are the only one\n")


class FileGiver(Protocol):
    """Passes an open file to who connects."""

    def connectionMade(self) -> None:
        with open(os.devnull) as file:
            send_fds(self.transport, b"here\n", [file.fileno()])
        self.transport.loseConnection()


class Asker(Protocol):
    """The standing connection: asks once, and logs the answer."""

    def connectionMade(self) -> None:
        self.transport.write(b"the standing connection\n")

    def dataReceived(self, data: bytes) -> None:
        log.info("answer: {answer}", answer=data.decode())


class Status(Resource):
    """``GET /``: the live connections as JSON."""

    isLeaf = True

    def __init__(self, registries: list[Connections]) -> None:
        super().__init__()
        self.registries = registries

    def render_GET(self, request) -> bytes:
        request.setHeader(b"content-type", b"application/json")
        return (
            json.dumps({registry.name: registry.describe() for registry in self.registries}).encode() + b"\n"
        )


def make_service() -> MultiService:
    """Everything below one service, in the order in which it starts."""
    paths = RuntimePaths.find("embedding")
    paths.make_directories()
    services = MultiService()
    askers = Connections(8, name="askers", clock=reactor)
    relays = Connections(64, name="relays", clock=reactor)

    def listen(name, creator, registry=None):
        listener = UnixListener(reactor, f"{paths.sockets}/{name}", creator, mode=0o600, registry=registry)
        listener.setServiceParent(services)
        return listener

    who = listen("who", ProcessorCreator(Who, "asker", askers), askers)
    listen("one", SingleClientCreator(lambda address: Greeter(), "one"))
    listen("null", NullCreator("null", "this socket serves nobody"))
    listen("file", DelegateCreator(lambda address: FileGiver()))

    # two adjacent ports, ours from here on: the lower one forwards, the upper one is the web site
    ports = PortAllocator(18080, 18180).claim()
    forward = ForwardCreator(
        UnixConnector(reactor, who.path, retry=RetryPolicy(first_delay=0.05, deadline=5)),
        clock=reactor,
        name="forward",
        registry=relays,
        idle_timeout=300,
        on_close=lambda result: log.info("forward ended: {result}", result=result),
    )
    TcpListener(reactor, ports.take(0), forward).setServiceParent(services)

    # a factory of the application's own behind a listener of ours, so that its connections are closed at the stop
    site = Site(Status([askers, relays]))
    TcpListener(reactor, ports.take(1), DelegateCreator(site.buildProtocol), name="web").setServiceParent(
        services
    )

    # a creator of ours behind any endpoint that Twisted or the application has
    endpoint = serverFromString(reactor, f"unix:{paths.sockets}/endpoint")
    EndpointListener(endpoint, ProcessorCreator(Who, "asker"), clock=reactor).setServiceParent(services)

    UnixConnector(reactor, who.path).service(Asker).setServiceParent(services)
    log.info("sockets below {directory}", directory=paths.sockets)
    log.info("forward: nc 127.0.0.1 {port}", port=ports.first)
    log.info("status: curl http://127.0.0.1:{port}/", port=ports.first + 1)
    return services


application = Application("embedding")
make_service().setServiceParent(application)
