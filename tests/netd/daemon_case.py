"""A running netd in a namespace of its own, and a client of its command socket."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from typing import Any

from twisted.internet import reactor

from anbox_tw.netd._framing import Message
from anbox_tw.netd.connector import NativeDaemonConnector
from anbox_tw.netd.daemon import Netd
from anbox_tw.netd.namespace import NetworkNamespace
from tests.netd.kernel import KernelTestCase, Space


class DaemonTestCase(KernelTestCase):
    """``await self.start()`` first; then ``await self.tell("interface list")``."""

    def setUp(self) -> None:
        super().setUp()
        self.ns = self.space()
        self.events: list[Message] = []
        self.directory = tempfile.mkdtemp(prefix="anbox-netd-test-")
        self.addCleanup(shutil.rmtree, self.directory, True)

    async def start(self, **options: Any) -> Netd:
        self.netd = Netd(
            reactor,
            socket_dir=os.path.join(self.directory, "s"),
            namespace=NetworkNamespace(self.ns.path),
            hosts=None,
            system_resolver=None,
            **options,
        )
        self.netd.startService()
        self.addCleanup(self.stop)
        self.connector = NativeDaemonConnector(
            reactor, os.path.join(self.directory, "s", "netd"), on_event=self.events.append
        )
        self.connector.startService()
        await self.connector.when_connected()
        await self.netd.when_ready()
        return self.netd

    async def stop(self) -> None:
        await self.connector.stopService()
        if self.netd.running:
            await self.netd.stopService()

    async def answering(self, path: str) -> None:
        """Wait until somebody listens at a path: a socket is there before that."""

        def connects() -> bool:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                except OSError:
                    return False
                return True

        await self.until(connects, f"somebody at {path}", timeout=30)

    async def tell(self, *words: str) -> list[str]:
        """Send a command (one string is split at its spaces); every reply as ``CODE TEXT``."""
        from anbox_tw.netd.console import Conversation

        if len(words) == 1:
            words = tuple(words[0].split(" "))
        conversation = await Conversation.connect(reactor, os.path.join(self.directory, "s", "netd"))
        replies = []
        try:
            conversation.send(7, list(words))
            while True:
                message = await conversation.next(20)
                if message.is_event:
                    continue
                self.assertEqual(message.sequence, 7)
                replies.append(f"{message.code} {message.text}")
                if not message.is_continue:
                    return replies
        finally:
            await conversation.close()

    async def expect(self, line: str, *replies: str) -> None:
        self.assertEqual(await self.tell(line), list(replies), line)

    def heard(self) -> list[str]:
        return [f"{event.code} {event.text}" for event in self.events]

    def cable(self, inside: str = "v0", outside: str = "v1", *, quiet: bool = False) -> Space:
        """A second namespace on a cable: ``v0`` 10.9.0.1/24 here, ``v1`` 10.9.0.2/24 there.

        Args:
            inside: name of our end.
            outside: name of the other.
            quiet: without IPv6, whose own packets (MLD, router solicitations) come when they like.
        """
        other = self.space()
        if quiet:
            for space in (self.ns, other):
                space.namespace.write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
        self.veth(self.ns, inside, other, outside)
        self.ns.run(f"ip addr add 10.9.0.1/24 dev {inside}")
        other.run(f"ip addr add 10.9.0.2/24 dev {outside}")
        return other
