"""From the first byte on a pipe to the service that gets it."""

from __future__ import annotations

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from anbox_tw.errors import ConfigError
from anbox_tw.interfaces import IConnectionCreator, IPipeService
from anbox_tw.network import TrackedProtocol
from anbox_tw.qemu._framing import encode_frame
from anbox_tw.qemu.boot_properties import BootPropertiesService, check_property
from anbox_tw.qemu.debug import PingPongService, ZeroService
from anbox_tw.qemu.errors import PipeServiceExists, UnknownPipeService
from anbox_tw.qemu.pipe import IDENTIFICATION_TIMEOUT_S, PipeConnectionCreator
from anbox_tw.qemu.registry import PipeServiceRegistry

GUEST = UNIXAddress("guest")


class Transport(StringTransport):
    """Remembers an abort, and tells its protocol of it."""

    protocol: Protocol

    def abortConnection(self) -> None:
        if not self.disconnected:
            super().abortConnection()
            self.disconnected = True
            self.protocol.connectionLost(Failure(connectionDone.value))


class Recorder(Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.lost = 0

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost += 1


@implementer(IPipeService)
class Recording:
    """Hands out recorders, or refuses."""

    def __init__(self, name: str, refuse: bool = False) -> None:
        self.name = name
        self.refuse = refuse
        self.opened: list[tuple[str, IAddress]] = []
        self.protocol = Recorder()

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        self.opened.append((argument, address))
        return None if self.refuse else self.protocol


class PipeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.registry = PipeServiceRegistry()
        self.service = Recording("qemud:test")
        self.registry.register(self.service)
        self.creator = PipeConnectionCreator(self.registry, self.clock)
        self.warnings: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event["log_level"] is LogLevel.warn:
                self.warnings.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def connect(self, tracked: bool = True) -> Transport:
        protocol = self.creator.create_connection_for(GUEST)
        assert isinstance(protocol, Protocol)
        transport = Transport()
        transport.protocol = TrackedProtocol(protocol) if tracked else protocol
        transport.protocol.makeConnection(transport)
        return transport

    def test_interfaces(self) -> None:
        verifyObject(IConnectionCreator, self.creator)
        verifyObject(IPipeService, ZeroService())
        verifyObject(IPipeService, PingPongService())
        verifyObject(IPipeService, BootPropertiesService({}))

    def test_the_service_gets_argument_address_and_the_rest(self) -> None:
        for tracked in (True, False):
            transport = self.connect(tracked)
            transport.protocol.dataReceived(b"pipe:qemud:test:1:2\0and ")
            transport.protocol.dataReceived(b"more")
            self.assertEqual(self.service.opened.pop(), ("1:2", GUEST))
            self.assertEqual(self.service.protocol.data, b"and more")
            self.assertIs(self.service.protocol.transport, transport)
            transport.protocol.connectionLost(Failure(connectionDone.value))
            self.assertEqual(self.service.protocol.lost, 1)
            self.service.protocol = Recorder()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_byte_by_byte(self) -> None:
        transport = self.connect()
        for byte in b"pipe:qemud:test\0xyz":
            transport.protocol.dataReceived(bytes([byte]))
        self.assertEqual(self.service.opened, [("", GUEST)])
        self.assertEqual(self.service.protocol.data, b"xyz")

    def test_a_silent_guest_is_closed_after_five_seconds(self) -> None:
        transport = self.connect()
        transport.protocol.dataReceived(b"pipe:qem")
        self.clock.advance(IDENTIFICATION_TIMEOUT_S - 0.1)
        self.assertFalse(transport.disconnected)
        self.clock.advance(0.1)
        self.assertTrue(transport.disconnected)
        self.assertIn("no name within 5 s", self.warnings[0])

    def test_unknown_services_and_garbage_are_closed_with_a_logged_reason(self) -> None:
        for data, words in (
            (b"pipe:qemud:none\0", "no pipe service is named 'qemud:none'"),
            (b"pipe:qemud:testing\0", "no pipe service is named 'qemud:testing'"),
            (b"\x16\x03\x01garbage", "not with pipe:"),
            (b"pipe:" + b"x" * 300, "no NUL within the first 256 bytes"),
            (b"pipe:\xff{}\0", "not UTF-8"),
        ):
            transport = self.connect()
            transport.protocol.dataReceived(data)
            self.assertTrue(transport.disconnected)
            self.assertIn(words, self.warnings.pop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_service_may_refuse(self) -> None:
        self.registry.register(Recording("no", refuse=True))
        transport = self.connect()
        transport.protocol.dataReceived(b"pipe:no\0")
        self.assertTrue(transport.disconnected)

    def test_a_service_that_fails_is_logged_and_the_guest_closed(self) -> None:
        self.patch(self.service, "open", lambda argument, address: 1 / 0)
        transport = self.connect()
        transport.protocol.dataReceived(b"pipe:qemud:test\0")
        self.assertTrue(transport.disconnected)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_guest_that_leaves_early_leaves_nothing(self) -> None:
        transport = self.connect()
        transport.protocol.connectionLost(Failure(connectionDone.value))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_two_guests_do_not_wait_for_each_other(self) -> None:
        slow, quick = self.connect(), self.connect()
        slow.protocol.dataReceived(b"pipe:")
        quick.protocol.dataReceived(b"pipe:qemud:test\0")
        self.assertEqual(len(self.service.opened), 1)
        slow.protocol.dataReceived(b"qemud:test:late\0")
        self.assertEqual(self.service.opened[1][0], "late")


class RegistryTests(SynchronousTestCase):
    def test_services_come_and_go(self) -> None:
        registry = PipeServiceRegistry()
        service = Recording("a:b")
        registry.register(service)
        self.assertEqual(list(registry), ["a:b"])
        self.assertEqual(len(registry), 1)
        self.assertEqual(registry.find("a:b:c"), (service, "c"))
        with self.assertRaises(PipeServiceExists):
            registry.register(Recording("a:b"))
        registry.unregister(Recording("a:b"))
        self.assertEqual(len(registry), 1)
        registry.unregister(service)
        registry.unregister(service)
        with self.assertRaises(UnknownPipeService):
            registry.find("a:b")

    def test_what_is_no_service_is_refused_at_once(self) -> None:
        with self.assertRaises(TypeError):
            PipeServiceRegistry().register(object())  # type: ignore[arg-type]


class BootPropertiesTests(SynchronousTestCase):
    def connect(self, properties: dict[str, str]) -> Transport:
        protocol = BootPropertiesService(properties).open("", GUEST)
        assert isinstance(protocol, Protocol)
        transport = Transport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport

    def test_list_is_framed_to_its_end(self) -> None:
        transport = self.connect({"ro.sf.lcd_density": "160", "a": "b=c"})
        for byte in encode_frame(b"list"):
            transport.protocol.dataReceived(bytes([byte]))
        self.assertEqual(transport.value(), b"0015ro.sf.lcd_density=1600005a=b=c0001\0")
        self.assertFalse(transport.disconnected)

    def test_other_commands_are_ignored_and_bad_frames_close(self) -> None:
        transport = self.connect({})
        transport.protocol.dataReceived(b"0003abc0004list0005list\0")
        self.assertEqual(transport.value(), b"0001\0" * 2)
        transport.protocol.dataReceived(b"list")
        self.assertTrue(transport.disconnected)

    def test_a_guest_that_does_not_read_is_not_read(self) -> None:
        transport = self.connect({"a": "b"})
        producer = transport.producer
        assert producer is not None
        producer.pauseProducing()
        self.assertEqual(transport.producerState, "paused")
        producer.resumeProducing()
        self.assertEqual(transport.producerState, "producing")
        producer.stopProducing()

    def test_what_no_guest_can_take_is_refused(self) -> None:
        check_property("n" * 32, "v" * 92)
        for name, value in (
            ("", "x"),
            ("n" * 33, "x"),
            ("a b", "x"),
            ("a=b", "x"),
            ("ä", "x"),
            ("a", "v" * 93),
            ("a", "x\ny"),
        ):
            with self.assertRaises(ConfigError):
                BootPropertiesService({name: value})
