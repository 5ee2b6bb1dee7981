"""Listeners over real sockets, and on the in-memory reactor."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import (
    TCP4ServerEndpoint,
    UNIXServerEndpoint,
    clientFromString,
    connectProtocol,
)
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from anbox_tw.errors import AlreadyRunning, AnboxError, ConfigError, NetworkError, PermissionRefused
from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.network import (
    Connections,
    CreatorFactory,
    DelegateCreator,
    EndpointListener,
    ITrackedConnection,
    NullCreator,
    PortAllocator,
    ProcessorCreator,
    SingleClientCreator,
    TcpListener,
    TrackedProtocol,
    UnixListener,
    hand_over,
    peer_credentials,
)
from tests.network.helpers import NetworkTestCase, Recorder, wait_until
from tests.network.test_socket_connection import Echo


class RecordingCreator:
    def __init__(self, **options: Any) -> None:
        self.made: list[Recorder] = []
        self._options = options

    def __call__(self, address: object) -> Recorder:
        self.made.append(Recorder(**self._options))
        return self.made[-1]


def fail_to_build(address: object) -> None:
    raise ZeroDivisionError


class CreatorTests(SynchronousTestCase):
    def test_they_provide_the_interface(self) -> None:
        for creator in (
            DelegateCreator(lambda address: None),
            SingleClientCreator(lambda address: None),
            NullCreator(),
            ProcessorCreator(Echo, "echo"),
        ):
            self.assertTrue(verifyObject(IConnectionCreator, creator))

    def test_null_says_why(self) -> None:
        from twisted.internet.address import UNIXAddress
        from twisted.logger import capturedLogs

        with capturedLogs() as logs:
            self.assertIsNone(NullCreator("audio", "no sound here").create_connection_for(UNIXAddress("/x")))
        self.assertEqual([(event["name"], event["reason"]) for event in logs], [("audio", "no sound here")])

    def test_single_client_serves_one_after_the_other(self) -> None:
        recording = RecordingCreator()
        creator = SingleClientCreator(recording, "one")
        first: Any = creator.create_connection_for(None)  # type: ignore[arg-type]
        self.assertIsNone(creator.create_connection_for(None))  # type: ignore[arg-type]
        transport = StringTransportWithDisconnection()
        transport.protocol = first
        first.makeConnection(transport)
        transport.loseConnection()
        self.assertIsNotNone(recording.made[0].lost)
        self.assertIsNotNone(creator.create_connection_for(None))  # type: ignore[arg-type]

    def test_single_client_may_refuse(self) -> None:
        creator = SingleClientCreator(lambda address: None)
        self.assertIsNone(creator.create_connection_for(None))  # type: ignore[arg-type]
        self.assertIsNone(creator.connection)


class FactoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.registry = Connections(2, name="r", clock=MemoryReactorClock())
        self.recording = RecordingCreator()
        self.factory = CreatorFactory(
            DelegateCreator(self.recording), self.registry, "things", tcp_no_delay=True
        )

    def connect(self) -> tuple[Any, StringTransportWithDisconnection]:
        protocol = self.factory.buildProtocol(None)
        transport = StringTransportWithDisconnection()
        if protocol is not None:
            transport.protocol = protocol
            protocol.makeConnection(transport)
        return protocol, transport

    def test_lists_while_open(self) -> None:
        protocol, transport = self.connect()
        self.assertTrue(verifyObject(ITrackedConnection, protocol))
        self.assertEqual(list(self.registry), [protocol])
        self.assertIs(self.recording.made[0].transport, transport)
        self.assertEqual(self.registry.describe()[0]["protocol"], "Recorder")
        transport.loseConnection()
        self.assertEqual(len(self.registry), 0)
        self.assertIsNotNone(self.recording.made[0].lost)

    def test_limit(self) -> None:
        self.connect()
        self.connect()
        self.assertIsNone(self.connect()[0])
        self.assertEqual(self.registry.refused, 1)

    def test_limit_reached_before_connection_made(self) -> None:
        self.registry.limit = 1
        late = self.factory.buildProtocol(None)
        self.connect()
        transport = StringTransportWithDisconnection()
        transport.protocol = late
        late.makeConnection(transport)
        self.assertFalse(transport.connected)
        self.assertEqual(len(self.registry), 1)

    def test_creator_that_raises_refuses(self) -> None:
        factory = CreatorFactory(DelegateCreator(fail_to_build), self.registry, "x")
        self.assertIsNone(factory.buildProtocol(None))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_not_a_creator(self) -> None:
        with self.assertRaises(TypeError):
            CreatorFactory(object(), self.registry, "x")  # type: ignore[arg-type]

    def test_socket_connection_is_listed_once(self) -> None:
        for no_delay in (False, True):
            factory = CreatorFactory(
                ProcessorCreator(Echo, "echo", self.registry), self.registry, "echo", tcp_no_delay=no_delay
            )
            protocol: Any = factory.buildProtocol(None)
            transport = StringTransportWithDisconnection()
            transport.protocol = protocol
            protocol.makeConnection(transport)
            self.assertEqual(len(self.registry), 1)
            protocol.dataReceived(b"hello")
            self.assertEqual(transport.value(), b"hello")
            transport.unregisterProducer()
            transport.loseConnection()
            self.assertEqual(len(self.registry), 0)

    def test_hand_over_keeps_it_listed(self) -> None:
        protocol, transport = self.connect()
        second = Recorder()
        hand_over(transport, second, b"left over")
        self.assertEqual(bytes(second.data), b"left over")
        protocol.dataReceived(b" and more")
        self.assertEqual(bytes(second.data), b"left over and more")
        self.assertEqual(len(self.registry), 1)
        transport.loseConnection()
        self.assertIsNone(self.recording.made[0].lost)
        self.assertIsNotNone(second.lost)
        self.assertEqual(len(self.registry), 0)

    def test_hand_over_of_an_untracked_one(self) -> None:
        first, second, transport = Recorder(), Recorder(), StringTransportWithDisconnection()
        transport.protocol = first
        first.makeConnection(transport)
        hand_over(transport, second)
        self.assertIs(transport.protocol, second)
        self.assertIs(second.transport, transport)

    def test_attributes_of_the_inner_protocol(self) -> None:
        tracked = TrackedProtocol(Recorder())
        tracked.readConnectionLost()
        self.assertTrue(tracked.protocol.ended)
        with self.assertRaises(AttributeError):
            tracked.no_such_thing

    def test_close_and_abort_before_and_after_the_connection(self) -> None:
        tracked = TrackedProtocol(Recorder())
        tracked.close("x")
        tracked.abort("x")
        self.assertIsNone(tracked.close_reason)
        protocol, transport = self.connect()
        protocol.abort("because")
        self.assertFalse(transport.connected)
        self.assertEqual(protocol.close_reason, "because")


class ListenerCases:
    """What holds for each listener over real sockets; the classes below say how to make and reach it."""

    def make(self, creator: Any, **options: Any) -> Any:
        raise NotImplementedError

    def address(self, service: Any) -> str:
        raise NotImplementedError

    async def connect(self: Any, service: Any, **options: Any) -> Recorder:
        endpoint = clientFromString(self.reactor, self.address(service))
        client: Recorder = await connectProtocol(endpoint, Recorder(**options))
        self.addCleanup(lambda: client.transport and client.transport.abortConnection())
        return client

    async def test_echo(self: Any) -> None:
        service = self.start(self.make(DelegateCreator(lambda a: Recorder(lambda data: data))))
        client = await self.connect(service)
        client.transport.write(b"hello")
        await client.when_received(5)
        self.assertEqual(bytes(client.data), b"hello")

    async def test_stop_closes_listener_and_connections(self: Any) -> None:
        recording = RecordingCreator()
        service = self.start(self.make(DelegateCreator(recording)))
        clients = [await self.connect(service, half_close=False) for _ in range(3)]
        await wait_until(lambda: len(service.connections) == 3)
        await service.stopService()
        self.assertFalse(service.listening)
        self.assertEqual(len(service.connections), 0)
        for server in recording.made:
            self.assertIsNotNone(server.lost)
        for client in clients:
            await client.when_lost()
        await service.stopService()

    async def test_stop_cuts_off_a_peer_that_does_not_read(self: Any) -> None:
        recording = RecordingCreator()
        service = self.start(self.make(DelegateCreator(recording), close_grace=0.05))
        client = await self.connect(service)
        client.transport.pauseProducing()
        await wait_until(lambda: recording.made)
        recording.made[0].transport.write(b"x" * 30_000_000)
        await service.stopService()
        self.assertIsNotNone(recording.made[0].lost)

    async def test_starts_again_after_a_stop(self: Any) -> None:
        service = self.start(self.make(DelegateCreator(lambda a: Recorder(lambda data: data))))
        await service.stopService()
        service.startService()
        client = await self.connect(service)
        client.transport.write(b"again")
        await client.when_received(5)

    async def test_refused_connection_is_closed(self: Any) -> None:
        service = self.start(self.make(NullCreator()))
        client = await self.connect(service, half_close=False)
        await client.when_lost()

    async def test_limit_and_room_again(self: Any) -> None:
        registry = Connections(1, clock=self.reactor)
        service = self.start(
            self.make(DelegateCreator(lambda a: Recorder(half_close=False)), registry=registry)
        )
        first = await self.connect(service)
        await wait_until(lambda: len(registry) == 1)
        second = await self.connect(service, half_close=False)
        await second.when_lost()
        self.assertEqual(registry.refused, 1)
        first.transport.loseConnection()
        await wait_until(lambda: len(registry) == 0)
        third = await self.connect(service)
        await wait_until(lambda: len(registry) == 1)
        self.assertIsNone(third.lost)

    async def test_half_close_reaches_the_protocol(self: Any) -> None:
        recording = RecordingCreator()
        service = self.start(self.make(DelegateCreator(recording)))
        client = await self.connect(service)
        client.transport.loseWriteConnection()
        await wait_until(lambda: recording.made)
        await recording.made[0].when_ended()
        self.assertIsNone(recording.made[0].lost)
        recording.made[0].transport.write(b"still here")
        await client.when_received(10)

    async def test_privileged_start_listens_and_start_does_not_again(self: Any) -> None:
        service = self.make(DelegateCreator(lambda a: Recorder()))
        service.privilegedStartService()
        self.assertTrue(service.listening)
        self.start(service)
        await self.connect(service)


class UnixListenerTests(ListenerCases, NetworkTestCase):
    def make(self, creator: Any, **options: Any) -> UnixListener:
        return UnixListener(self.reactor, self.path(), creator, **options)

    def address(self, service: UnixListener) -> str:
        return f"unix:{service.path}"

    async def test_gone_when_stopped(self) -> None:
        service = self.start(self.make(NullCreator(), mode=0o600))
        self.assertTrue(service.owns_path())
        self.assertEqual(os.stat(self.path()).st_mode & 0o777, 0o600)
        self.assertEqual(service.get_address().name, os.fsencode(self.path()))
        await service.stopService()
        self.assertEqual(os.listdir(self.directory), [])
        self.assertFalse(service.owns_path())

    async def test_second_one_is_refused_and_harms_nothing(self) -> None:
        service = self.start(self.make(DelegateCreator(lambda a: Recorder(lambda data: data))))
        second = self.make(NullCreator())
        error = self.assertRaises(AlreadyRunning, second.startService)
        self.assertIn(f"already running, pid {os.getpid()}, command ", error.cause)
        self.assertEqual(second.running, 0)
        client = await self.connect(service)
        client.transport.write(b"x")
        await client.when_received(1)

    async def test_path_of_another_is_left_alone(self) -> None:
        service = self.start(self.make(NullCreator()))
        os.unlink(self.path())
        other = self.start(self.make(NullCreator()))
        self.assertFalse(service.owns_path())
        await service.stopService()
        self.assertTrue(other.owns_path())

    async def test_removed_path_does_not_disturb_the_stop(self) -> None:
        service = self.start(self.make(NullCreator()))
        os.unlink(self.path())
        await service.stopService()

    async def test_credentials(self) -> None:
        recording = RecordingCreator()
        service = self.start(self.make(DelegateCreator(recording)))
        await self.connect(service)
        await wait_until(lambda: recording.made)
        who = peer_credentials(recording.made[0].transport)
        self.assertEqual((who.pid, who.uid, who.gid), (os.getpid(), os.geteuid(), os.getegid()))

    def test_bad_path(self) -> None:
        self.assertRaises(ConfigError, UnixListener, self.reactor, "/" + "x" * 200, NullCreator())

    def test_reactor_that_cannot(self) -> None:
        class Broken(MemoryReactorClock):
            def addReader(self, reader: Any) -> None:
                raise RuntimeError("no descriptors here")

        service = UnixListener(Broken(), self.path(), NullCreator())
        self.assertRaises(NetworkError, service.startService)
        self.assertEqual(os.listdir(self.directory), [])


class TcpListenerTests(ListenerCases, NetworkTestCase):
    def make(self, creator: Any, port: Any = 0, **options: Any) -> TcpListener:
        return TcpListener(self.reactor, port, creator, **options)

    def address(self, service: TcpListener) -> str:
        return f"tcp:127.0.0.1:{service.get_port()}"

    async def test_no_delay(self) -> None:
        recording = RecordingCreator()
        service = self.start(self.make(DelegateCreator(recording)))
        await self.connect(service)
        await wait_until(lambda: recording.made)
        self.assertTrue(recording.made[0].transport.getTcpNoDelay())

    def test_taken_port_names_its_holder(self) -> None:
        service = self.start(self.make(NullCreator()))
        error = self.assertRaises(AlreadyRunning, self.make(NullCreator(), service.get_port()).startService)
        self.assertIn(f"pid {os.getpid()}", error.cause)

    def test_other_errors(self) -> None:
        self.assertRaises(ConfigError, self.make(NullCreator(), interface="192.0.2.1").startService)
        for number, kind in ((13, PermissionRefused), (5, NetworkError)):
            reactor = MemoryReactorClock()

            def refuse(*arguments: Any, number: int = number, **options: Any) -> None:
                raise CannotListenError("", 1, OSError(number, "why"))

            self.patch(reactor, "listenTCP", refuse)
            self.assertRaises(kind, TcpListener(reactor, 1, NullCreator()).startService)

    def test_port_of_a_stopped_one(self) -> None:
        self.assertRaises(NetworkError, self.make(NullCreator()).get_port)

    async def test_claimed_socket(self) -> None:
        claim = PortAllocator(42000, 42100).claim()
        self.addCleanup(claim.release)
        service = self.start(self.make(DelegateCreator(lambda a: Recorder(lambda data: data)), claim.take(1)))
        self.assertEqual(service.get_port(), claim.first + 1)
        client = await self.connect(service)
        client.transport.write(b"x")
        await client.when_received(1)
        await service.stopService()
        self.assertRaises(NetworkError, service.startService)

    async def test_ipv6(self) -> None:
        service = self.start(
            self.make(DelegateCreator(lambda a: Recorder(lambda data: data)), interface="::1")
        )
        with socket.create_connection(("::1", service.get_port())):
            await wait_until(lambda: len(service.connections) == 1)


class EndpointListenerTests(ListenerCases, NetworkTestCase):
    def make(self, creator: Any, **options: Any) -> EndpointListener:
        return EndpointListener(
            UNIXServerEndpoint(self.reactor, self.path()), creator, clock=self.reactor, **options
        )

    def address(self, service: EndpointListener) -> str:
        return f"unix:{self.path()}"

    async def test_when_listening(self) -> None:
        service = self.make(NullCreator())
        waiting = service.when_listening()
        self.start(service)
        self.assertIs(await waiting, await service.when_listening())

    async def test_failure_is_raised_at_the_start(self) -> None:
        holder = self.start(TcpListener(self.reactor, 0, NullCreator()))
        service = EndpointListener(
            TCP4ServerEndpoint(self.reactor, holder.get_port(), interface="127.0.0.1"), NullCreator()
        )
        self.assertRaises(NetworkError, service.startService)

    def test_our_own_errors_pass_through(self) -> None:
        @implementer(IStreamServerEndpoint)
        class Endpoint:
            def listen(self, factory: Any) -> Deferred[Any]:
                return fail(ConfigError("bad"))

        service = EndpointListener(Endpoint(), NullCreator())
        waiting = service.when_listening()
        self.assertRaises(ConfigError, service.startService)
        self.failureResultOf(waiting, AnboxError)

    def test_slow_endpoint(self) -> None:
        cancelled: list[Any] = []

        @implementer(IStreamServerEndpoint)
        class Endpoint:
            def listen(self, factory: Any) -> Deferred[Any]:
                return Deferred(cancelled.append)

        service = EndpointListener(Endpoint(), NullCreator())
        waiting = service.when_listening()
        service.privilegedStartService()
        service.startService()
        self.assertFalse(service.listening)
        self.successResultOf(service.stopService())
        self.assertEqual(len(cancelled), 1)
        self.failureResultOf(waiting)
        self.assertEqual(len(self.flushLoggedErrors()), 1)

    def test_stop_that_fails_is_logged(self) -> None:
        class Port:
            def stopListening(self) -> Deferred[None]:
                return fail(RuntimeError("stuck"))

        @implementer(IStreamServerEndpoint)
        class Endpoint:
            def listen(self, factory: Any) -> Deferred[Any]:
                return succeed(Port())

        service = EndpointListener(Endpoint(), NullCreator())
        service.startService()
        self.successResultOf(service.stopService())
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
