"""Listening on sockets that somebody else has made."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from anbox_tw.network import adopted
from anbox_tw.network.adopted import AdoptedUnixEndpoint, systemd_endpoint


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


class AdoptedTests(TestCase):
    def bound(self) -> tuple[socket.socket, str]:
        path = os.path.relpath(self.mktemp())
        made = socket.socket(socket.AF_UNIX)
        self.addCleanup(made.close)
        made.bind(path)
        os.chmod(path, 0o600)
        return made, path

    async def test_the_path_is_left_alone(self) -> None:
        given, path = self.bound()
        for _ in range(2):
            # the second time as the next start of a service would
            port: Any = await AdoptedUnixEndpoint(reactor, given.fileno()).listen(Factory.forProtocol(Echo))
            self.assertFalse(os.get_inheritable(port.fileno()))
            client = Protocol()
            said: list[bytes] = []
            client.dataReceived = said.append  # type: ignore[method-assign, assignment]
            await connectProtocol(UNIXClientEndpoint(reactor, path), client)
            transport: Any = client.transport
            transport.write(b"hello")
            while not said:
                await deferLater(reactor, 0.005)
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            transport.abortConnection()
            await port.stopListening()
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    async def test_what_is_no_socket(self) -> None:
        with open(self.mktemp(), "w") as file:
            with self.assertRaises(OSError):
                await AdoptedUnixEndpoint(reactor, file.fileno()).listen(Factory.forProtocol(Echo))

    def test_systemd_descriptions(self) -> None:
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "one:two"}

        def number(text: str, given: dict[str, str] = environ) -> int | None:
            found = systemd_endpoint(reactor, text, given)
            return None if found is None else found._descriptor

        self.assertEqual(number("systemd:domain=UNIX:index=0"), 3)
        self.assertEqual(number("systemd:domain=UNIX:name=two"), 4)
        for text in (
            "systemd:domain=UNIX:index=2",
            "systemd:domain=UNIX:name=three",
            "systemd:domain=UNIX",
            "systemd:domain=INET:index=0",
            "unix:/x",
        ):
            self.assertIsNone(number(text), text)
        self.assertIsNone(number("systemd:domain=UNIX:index=0", {**environ, "LISTEN_PID": "1"}))
        self.assertIsNone(number("systemd:domain=UNIX:index=0", {}))
        self.assertIsNone(systemd_endpoint(reactor, "systemd:domain=UNIX:index=0"))

    def test_the_initial_environment(self) -> None:
        found = adopted.initial_environment()
        self.assertEqual(found["PATH"], os.environ["PATH"])
