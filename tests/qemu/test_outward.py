"""What guests may reach on the host, by real sockets through the real qemu_pipe; opengles, boot icon and test pipes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from anbox_tw.errors import ConfigError
from anbox_tw.interfaces import IPipeService
from anbox_tw.network import UnixListener
from anbox_tw.qemu._wire import encode_identification
from anbox_tw.qemu.boot_animation import SEND_TIMEOUT_S, BootAnimationService, read_icon
from anbox_tw.qemu.debug import PingPongService, ZeroService
from anbox_tw.qemu.opengles import OpenGlesService
from anbox_tw.qemu.outward import Allowance, TcpOutward, UnixOutward
from anbox_tw.qemu.pipe import PipeConnectionCreator
from anbox_tw.qemu.registry import PipeServiceRegistry
from tests.qemu.guests import Guest, ServiceCase
from tests.session.guest import until


def allow(*patterns: str) -> list[Allowance]:
    return [Allowance.parse(pattern) for pattern in patterns]


class AllowanceTests(SynchronousTestCase):
    def reached(self, argument: str, *patterns: str) -> bool:
        return TcpOutward(reactor, allow(*patterns)).connector(argument) is not None

    def test_nothing_is_allowed_by_default(self) -> None:
        for argument in ("80", "127.0.0.1:80", "localhost:80", "example:80"):
            self.assertFalse(self.reached(argument))
        self.assertIsNone(UnixOutward(reactor, []).connector("/run/docker.sock"))

    def test_tcp_patterns(self) -> None:
        for pattern, yes, no in (
            (
                "tcp:8000",
                "8000 127.0.0.1:8000 localhost:8000 LOCALHOST:8000",
                "8001 127.0.0.2:8000 [::1]:8000",
            ),
            ("tcp:127.0.0.1:8000-8010", "8000 8010 8005", "7999 8011"),
            ("tcp:*", "1 65535 127.0.0.1:5", "10.0.0.1:5 example:5"),
            ("tcp:[::1]:80", "[::1]:80 [0:0::1]:80", "80 [::2]:80"),
            (
                "tcp:db.example:5432",
                "db.example:5432 DB.EXAMPLE:5432",
                "5432 evil.example:5432 db.example:5433",
            ),
            ("tcp:*:443", "443 example:443 10.1.2.3:443 [fe80::1]:443", "80 example:444"),
            ("tcp:*:*", "443 example:1", "example:0"),
        ):
            for argument in yes.split():
                self.assertTrue(self.reached(argument, pattern), f"{pattern} {argument}")
            for argument in no.split():
                self.assertFalse(self.reached(argument, pattern), f"{pattern} {argument}")

    def test_what_is_no_address_is_never_reached(self) -> None:
        for argument in (
            "",
            "0",
            "65536",
            "-1",
            "x",
            "1:2:3",
            "127.1:80",
            "0x7f.1:80",
            "2130706433:80",
            ":80",
            "٣",
        ):
            self.assertFalse(self.reached(argument, "tcp:*:*", "tcp:*"), argument)

    def test_unix_patterns(self) -> None:
        service = UnixOutward(reactor, allow("unix:/run/a.sock", "unix:/srv/d/*"))
        for path, allowed in (
            ("/run/a.sock", True),
            ("/run/a.sock2", False),
            ("/run/../run/a.sock", False),
            ("/run//a.sock", False),
            ("run/a.sock", False),
            ("/srv/d/x", True),
            ("/srv/d/x/y", False),
            ("/srv/d/../a", False),
            ("/srv/d", False),
            ("/srv/d/" + "x" * 200, False),
            ("", False),
        ):
            self.assertEqual(service.connector(path) is not None, allowed, path)

    def test_patterns_that_are_none(self) -> None:
        for pattern in (
            "",
            "tcp",
            "tcp:",
            "tcp:0",
            "tcp:x",
            "tcp:9-8",
            "tcp:1-",
            "tcp:127.1:80",
            "tcp::80",
            "tcp:fe80::1:80",
            "unix:",
            "unix:run/a",
            "unix:/run/../a",
            "unix:/run/*/a",
            "unix:*",
            "udp:53",
        ):
            with self.assertRaises(ConfigError, msg=pattern):
                Allowance.parse(pattern)


class Collector(Protocol):
    """Keeps what comes; answers with what the test gave when the other side has ended."""

    def __init__(self, answer: bytes = b"") -> None:
        self.data = b""
        self.answer = answer
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.data += data
        if self.answer and self.data.endswith(b"?"):
            self.transport.write(self.answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)

    def close(self) -> Deferred[None]:
        if not self.lost.called and self.transport is not None:
            self.transport.loseConnection()
        return self.lost


class CallableFactory(ServerFactory):
    noisy = False

    def __init__(self, build: Callable[[], Protocol]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._build()


class RelayTests(TestCase):
    """Through a qemu_pipe socket to servers of the test's."""

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="out-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.registry = PipeServiceRegistry()
        self.path = os.path.join(self.directory, "qemu_pipe")
        listener = UnixListener(
            reactor, self.path, PipeConnectionCreator(self.registry, reactor), name="pipe"
        )
        listener.startService()
        self.addCleanup(listener.stopService)
        self.accepted: list[Collector] = []
        self.logged: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            self.logged.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def server(self) -> Any:
        def build() -> Protocol:
            self.accepted.append(Collector(b"answer"))
            return self.accepted[-1]

        return CallableFactory(build)

    def listen_unix(self, name: str) -> str:
        path = os.path.join(self.directory, name)
        the_reactor: Any = reactor
        port: Any = the_reactor.listenUNIX(path, self.server())
        self.addCleanup(port.stopListening)
        return path

    def listen_tcp(self) -> int:
        port: Any = reactor.listenTCP(0, self.server(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def guest(self, name: str, data: bytes = b"") -> Collector:
        guest = Collector()
        await connectProtocol(UNIXClientEndpoint(reactor, self.path), guest)
        self.addCleanup(guest.close)
        assert guest.transport is not None
        guest.transport.write(encode_identification(name) + data)
        return guest

    async def test_tcp(self) -> None:
        port = self.listen_tcp()
        service = TcpOutward(reactor, allow(f"tcp:{port}"))
        verifyObject(IPipeService, service)
        self.registry.register(service)
        for name in (f"tcp:{port}", f"tcp:localhost:{port}"):
            guest = await self.guest(name, b"question?")
            await until(lambda guest=guest: guest.data == b"answer")  # type: ignore[misc]
            self.assertEqual(self.accepted[-1].data, b"question?")
            (running,) = service.connections
            self.assertEqual(running.strategy, "sockets")
            await guest.close()
            await self.accepted[-1].lost
            await until(lambda: not len(service.connections))

    async def test_what_is_not_allowed_is_closed_with_a_reason(self) -> None:
        port = self.listen_tcp()
        self.registry.register(TcpOutward(reactor, allow("tcp:1")))
        self.registry.register(UnixOutward(reactor, []))
        for name in (f"tcp:{port}", "tcp", "unix:/run/docker.sock"):
            guest = await self.guest(name)
            await guest.lost
            self.assertTrue([line for line in self.logged if f"may not connect to {name}" in line], name)
        self.assertEqual(self.accepted, [])

    async def test_a_port_where_nobody_listens(self) -> None:
        self.registry.register(TcpOutward(reactor, allow("tcp:1")))
        await (await self.guest("tcp:1")).lost
        self.assertTrue([line for line in self.logged if "cannot connect to 127.0.0.1:1" in line])

    async def test_unix_and_its_directory(self) -> None:
        exact, inside = self.listen_unix("exact"), self.listen_unix("inside")
        os.symlink(exact, os.path.join(self.directory, "link"))
        self.registry.register(UnixOutward(reactor, allow(f"unix:{exact}", f"unix:{self.directory}/*")))
        for path in (exact, inside):
            guest = await self.guest(f"unix:{path}", b"?")
            await until(lambda guest=guest: guest.data == b"answer")  # type: ignore[misc]
        self.assertEqual(len(self.accepted), 2)

    async def test_links_in_a_directory_lead_nowhere(self) -> None:
        os.mkdir(os.path.join(self.directory, "shared"))
        inside = self.listen_unix("shared/inside")
        outside = self.listen_unix("outside")
        os.symlink(outside, os.path.join(self.directory, "shared/link"))
        with open(os.path.join(self.directory, "shared/file"), "w"):
            pass
        self.registry.register(UnixOutward(reactor, allow(f"unix:{self.directory}/shared/*")))
        for name in ("link", "file", "none"):
            guest = await self.guest(f"unix:{self.directory}/shared/{name}")
            await guest.lost
        self.assertEqual(self.accepted, [])
        names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        held = [os.readlink(name) for name in names if os.path.lexists(name)]
        self.assertEqual([path for path in held if path.startswith(f"{self.directory}/shared")], [])
        guest = await self.guest(f"unix:{inside}", b"?")
        await until(lambda: guest.data == b"answer")

    async def test_opengles_is_handed_to_the_renderer_with_its_flags(self) -> None:
        path = self.listen_unix("renderer")
        service = OpenGlesService(reactor, f"unix:{path}")
        verifyObject(IPipeService, service)
        self.registry.register(service)
        guest = await self.guest("opengles", b"\x01\0\0\0commands?")
        await until(lambda: guest.data == b"answer")
        self.assertEqual(self.accepted[0].data, b"\x01\0\0\0commands?")
        self.assertEqual([each.strategy for each in service.connections], ["sockets"])

    async def test_opengles_without_a_renderer_is_refused_with_a_reason(self) -> None:
        self.registry.register(OpenGlesService(reactor))
        await (await self.guest("opengles", b"\0\0\0\0")).lost
        self.assertTrue([line for line in self.logged if "there is no renderer" in line])
        with self.assertRaises(ConfigError):
            OpenGlesService(reactor, "nonsense")

    async def test_a_renderer_that_is_gone(self) -> None:
        self.registry.register(OpenGlesService(reactor, f"unix:{self.directory}/gone"))
        await (await self.guest("opengles", b"\0\0\0\0")).lost
        self.assertTrue([line for line in self.logged if "cannot connect to the renderer" in line])

    async def test_the_boot_icon_is_whole_and_ends(self) -> None:
        icon = os.urandom(300_001)
        path = os.path.join(self.directory, "icon.png")
        with open(path, "wb") as file:
            file.write(icon)
        self.registry.register(BootAnimationService(reactor, read_icon(path)))
        guest = await self.guest("anbox:bootanimation", b"000dretrieve-icon")
        await guest.lost
        self.assertEqual(guest.data, icon)
        with self.assertRaises(ConfigError):
            read_icon(path + "x")

    async def test_zero_and_pingpong(self) -> None:
        self.registry.register(ZeroService())
        self.registry.register(PingPongService())
        guest = await self.guest("pingpong", b"ping")
        await until(lambda: guest.data == b"ping")
        zero = await self.guest("zero")
        await until(lambda: len(zero.data) > 1_000_000)
        self.assertEqual(set(zero.data), {0})


class BootAnimationTests(ServiceCase):
    def test_other_commands_are_ignored_and_garbage_ends_it(self) -> None:
        clock = Clock()
        guest = Guest(BootAnimationService(clock, b"icon"))
        guest.send(b"hello")
        self.assertEqual((guest.received(), guest.closed), (b"", False))
        self.assert_framed_garbage_ends_it(BootAnimationService(clock, b"icon"))

    def test_a_guest_that_does_not_read_it_is_closed(self) -> None:
        clock = Clock()
        guest = Guest(BootAnimationService(clock, b"icon"))
        closed: list[bool] = []
        guest.transport.loseConnection = lambda: closed.append(True)  # type: ignore[method-assign]  # never flushes
        guest.send(b"retrieve-icon", b"retrieve-icon")
        self.assertEqual((guest.received(), closed), (b"icon", [True]))
        clock.advance(SEND_TIMEOUT_S)
        self.assertTrue(guest.closed)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_no_icon_is_an_empty_answer(self) -> None:
        clock = Clock()
        guest = Guest(BootAnimationService(clock))
        guest.send(b"retrieve-icon")
        self.assertEqual(guest.received(), b"")
        self.assertTrue(guest.transport.disconnecting)
        guest.leave()
        self.assertEqual(clock.getDelayedCalls(), [])
