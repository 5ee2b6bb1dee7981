"""The manager's service and the client that comes back, over an in-memory link."""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from anbox_tw.container.authority import Authority
from anbox_tw.container.client import ContainerClient, ContainerClientService, connect
from anbox_tw.container.manager import ContainerManager, ManagerSettings
from anbox_tw.container.service import ManagerService
from anbox_tw.errors import NotRunning
from anbox_tw.network import Credentials, RetryPolicy
from anbox_tw.rpc import Channel, Dispatcher, RpcFactory
from anbox_tw.rpc._pb import anbox_container_pb2 as pb
from anbox_tw.testing.container import FakeBackend
from anbox_tw.testing.rpc import RpcLink

US = Credentials(1, os.geteuid(), os.getegid())
RETRY = RetryPolicy(first_delay=1.0, factor=2.0, max_delay=8.0, jitter=0.0)


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Connects to ``make()``'s channel, or fails while that gives None."""

    def __init__(self, make: Any) -> None:
        self.make = make
        self.links: list[RpcLink] = []
        self.tries = 0

    def connect(self, factory: Any) -> Deferred[Any]:
        self.tries += 1
        server = self.make()
        if server is None:
            return fail(ConnectionRefusedError())
        client = factory.buildProtocol(None)
        self.links.append(RpcLink(client, server, credentials=US))
        return succeed(client)


class Listener(Service):
    """Listens to nobody, and says what it was told."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def startService(self) -> None:
        super().startService()
        self.told.append("listen")

    def stopService(self) -> Deferred[None]:
        self.told.append("close")
        return succeed(None)


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.backend = FakeBackend()
        data_path = os.path.abspath(self.mktemp())
        self.told: list[str] = []
        self.manager = ContainerManager(
            self.clock,
            ManagerSettings(data_path=data_path, run_path=f"{data_path}-run", backend="process"),
            {"process": self.backend},
            authority=Authority(uid=os.geteuid()),
        )
        self.service = ManagerService(self.clock, self.manager, lambda factory: Listener(self.told))
        self.there = True
        self.endpoint = Endpoint(self.server)

    def server(self) -> Channel | None:
        return self.service.factory.buildProtocol(None) if self.there else None

    def advance(self, seconds: float) -> None:
        self.clock.pump([0.5] * int(seconds * 2))


class ManagerServiceTests(Base):
    def test_containers_end_before_the_connections(self) -> None:
        self.service.startService()
        self.service.startService()
        self.assertEqual(self.told, ["listen"])
        client = self.successResultOf(connect(self.clock, self.endpoint))
        self.successResultOf(client.start_container())
        states: list[str] = []
        self.successResultOf(client.watch(lambda event: states.append(event["state"])))
        holding = self.backend.held.setdefault("stop", [])
        stopped = self.service.stopService()
        self.assertNoResult(stopped)
        lost = client.when_lost()
        self.assertNoResult(lost)
        holding[0].callback(None)
        self.successResultOf(stopped)
        self.assertEqual(states[-1], "stopped")
        self.assertIn("manager", self.successResultOf(lost))
        self.assertEqual((self.told, self.service.factory.channels), (["listen", "close"], set()))

    def test_stopping_twice_waits_twice(self) -> None:
        self.service.startService()
        client = self.successResultOf(connect(self.clock, self.endpoint))
        self.successResultOf(client.start_container())
        holding = self.backend.held.setdefault("stop", [])
        first, second = self.service.stopService(), self.service.stopService()
        self.assertNoResult(first)
        self.assertNoResult(second)
        holding[0].callback(None)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.told, ["listen", "close"])

    def test_stopping_what_never_started(self) -> None:
        self.successResultOf(self.service.stopService())


class ClientServiceTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.service.startService()
        self.connected: list[ContainerClient] = []
        self.lost: list[str] = []
        self.events: list[dict[str, Any]] = []

    def client_service(self, **more: Any) -> ContainerClientService:
        made = ContainerClientService(
            self.clock,
            self.endpoint,
            on_connected=self.connected.append,
            on_lost=self.lost.append,
            retry=RETRY,
            **more,
        )
        made.startService()
        made.startService()
        return made

    def test_it_comes_back_and_watches_again(self) -> None:
        service = self.client_service(on_event=self.events.append)
        client = self.successResultOf(service.when_connected())
        self.assertEqual(self.connected, [client])
        self.endpoint.links[0].cut()
        self.assertIsNone(service.client)
        self.assertEqual(len(self.lost), 1)
        self.there = False
        self.advance(20)
        self.there = True
        waiting = service.when_connected()
        self.advance(20)
        client = self.successResultOf(waiting)
        self.assertIs(self.connected[-1], client)
        self.successResultOf(client.start_container("a"))
        self.assertEqual(self.events[-1]["state"], "running")
        self.successResultOf(service.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_manager_without_our_methods_is_one(self) -> None:
        self.endpoint.make = lambda: Channel(self.clock)
        service = self.client_service()
        client = self.successResultOf(service.when_connected())
        client.channel.on_event = None
        self.successResultOf(service.stopService())

    def test_a_manager_that_leaves_what_it_does_not_know_unanswered_is_one(self) -> None:
        class Silent(Channel):
            def dataReceived(self, data: bytes) -> None:
                """As the original's does."""

        self.endpoint.make = lambda: Silent(self.clock)
        for more in ({}, {"on_event": self.events.append}):
            service = self.client_service(**more)
            waiting = service.when_connected()
            self.advance(4)
            self.assertNoResult(waiting)
            self.advance(1)
            self.successResultOf(waiting)
            self.successResultOf(service.stopService())

    def test_accepted_and_dropped_counts_as_a_failure(self) -> None:
        def drops() -> Channel:
            dispatcher = Dispatcher()
            channel = Channel(self.clock, dispatcher=dispatcher)
            dispatcher.register(
                "manager_info", pb.ManagerInfoRequest, lambda request, peer: channel.abort("no")
            )
            return channel

        self.endpoint.make = drops
        service = self.client_service()
        self.advance(16)
        # After 1, 2, 4 and 8 seconds.
        self.assertEqual((self.endpoint.tries, self.connected, self.lost), (5, [], []))
        self.successResultOf(service.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped_while_the_manager_does_not_answer(self) -> None:
        dispatcher = Dispatcher()
        dispatcher.register("manager_info", pb.ManagerInfoRequest, lambda request, peer: Deferred())
        self.endpoint.make = lambda: Channel(self.clock, dispatcher=dispatcher)
        service = self.client_service()
        waiting = service.when_connected()
        given_up = service.when_connected()
        given_up.addErrback(lambda _: None)
        given_up.cancel()
        self.assertNoResult(waiting)
        self.successResultOf(service.stopService())
        self.failureResultOf(waiting, NotRunning)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_failing_callback_is_logged_and_stops_it(self) -> None:
        service = ContainerClientService(self.clock, self.endpoint, on_connected=lambda client: 1 / 0)
        service.startService()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.successResultOf(service.stopService())

    def test_factory_is_limited(self) -> None:
        self.assertIsInstance(self.service.factory, RpcFactory)
        self.assertFalse(self.endpoint.links)


class InfoTests(Base):
    def test_details_that_are_no_json(self) -> None:
        dispatcher = Dispatcher()
        dispatcher.register(
            "container_info", pb.ContainerInfoRequest, lambda request, peer: pb.ContainerInfo(details="{")
        )
        self.endpoint.make = lambda: Channel(self.clock, dispatcher=dispatcher)
        client = self.successResultOf(connect(self.clock, self.endpoint))
        self.assertEqual(self.successResultOf(client.container_info())["details"], {})

    def test_nobody_there(self) -> None:
        self.there = False
        error = self.failureResultOf(connect(self.clock, self.endpoint)).value
        self.assertTrue(error.cause)
