"""Connectors: retry, giving up and cancelling, on a fake clock and over real sockets."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectError, ConnectionRefusedError, TimeoutError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from anbox_tw.errors import ConfigError, NetworkError, NotRunning, PermissionRefused, TimedOut
from anbox_tw.network import (
    DelegateCreator,
    EndpointConnector,
    RetryPolicy,
    TcpConnector,
    TcpListener,
    UnixConnector,
    UnixListener,
    free_port,
)
from tests.network.helpers import NetworkTestCase, Recorder, wait_until


class PolicyTests(SynchronousTestCase):
    def test_delays_grow_to_the_longest(self) -> None:
        policy = RetryPolicy(first_delay=1, factor=2, max_delay=5, jitter=0)
        self.assertEqual([policy.delay(n) for n in (0, 1, 2, 3, 4, 100_000)], [1, 1, 2, 4, 5, 5])

    def test_jitter(self) -> None:
        policy = RetryPolicy(first_delay=1, jitter=0.1)
        self.assertAlmostEqual(policy.delay(1, lambda: 0.0), 0.9)
        self.assertAlmostEqual(policy.delay(1, lambda: 1.0), 1.1)

    def test_bad_values(self) -> None:
        for options in ({"first_delay": -1}, {"factor": 0.5}, {"max_delay": -1}, {"jitter": 1}):
            self.assertRaises(ValueError, RetryPolicy, **options)


@implementer(IStreamClientEndpoint)
class Endpoint:
    def __init__(self) -> None:
        self.attempts: list[Deferred[Any]] = []
        self.cancelled = 0
        self.factory: Any = None

    def _cancel(self, attempt: Deferred[Any]) -> None:
        self.cancelled += 1

    def connect(self, factory: Any) -> Deferred[Any]:
        self.factory = factory
        self.attempts.append(Deferred(self._cancel))
        return self.attempts[-1]


class AttemptTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.endpoint = Clock(), Endpoint()

    def connect(self, **policy: Any) -> Deferred[Any]:
        policy.setdefault("jitter", 0)
        policy.setdefault("first_delay", 1)
        connector = EndpointConnector(
            self.clock, self.endpoint, retry=RetryPolicy(**policy), description="the manager"
        )
        return connector.connect(Recorder)

    def refuse(self, error: Exception | None = None) -> None:
        self.endpoint.attempts[-1].errback(error or ConnectionRefusedError(osError=errno.ECONNREFUSED))

    def test_connects_after_failures(self) -> None:
        result = self.connect(factor=2)
        self.refuse()
        self.clock.advance(0.9)
        self.assertEqual(len(self.endpoint.attempts), 1)
        self.clock.advance(0.2)
        self.refuse()
        self.clock.advance(2)
        protocol = self.endpoint.factory.buildProtocol(None)
        self.endpoint.attempts[-1].callback(protocol)
        self.assertIs(self.successResultOf(result), protocol)
        self.assertEqual((len(self.endpoint.attempts), self.clock.getDelayedCalls()), (3, []))

    def test_gives_up_after_attempts(self) -> None:
        result = self.connect(attempts=2)
        self.refuse()
        self.clock.advance(1)
        self.refuse()
        error = self.failureResultOf(result, NotRunning).value
        self.assertIn("cannot connect to the manager: ", str(error))
        self.assertIn("gave up after 2 attempts in 1.0 s", str(error))
        self.assertIsInstance(error.__cause__, ConnectionRefusedError)

    def test_gives_up_at_the_deadline(self) -> None:
        result = self.connect(deadline=2.5, factor=1)
        for _ in range(2):
            self.refuse()
            self.clock.advance(1)
        self.refuse()
        self.failureResultOf(result, NotRunning)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_gives_up_at_once_where_nothing_helps(self) -> None:
        result = self.connect()
        self.refuse(ConnectError(osError=errno.EACCES))
        self.failureResultOf(result, PermissionRefused)

    def test_kinds_of_failure(self) -> None:
        for error, kind in (
            (TimeoutError(), TimedOut),
            (ConnectError(osError=errno.ENOENT), NotRunning),
            (ConnectError(osError=errno.ENETUNREACH), NetworkError),
            (ValueError(""), NetworkError),
        ):
            result = self.connect(attempts=1)
            self.refuse(error)
            self.failureResultOf(result, kind)

    def test_cancel_while_waiting(self) -> None:
        result = self.connect()
        self.refuse()
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancel_while_connecting(self) -> None:
        result = self.connect()
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertEqual((self.endpoint.cancelled, self.clock.getDelayedCalls()), (1, []))

    def test_endpoint_that_gives_up_itself(self) -> None:
        result = self.connect()
        self.refuse(CancelledError())
        self.failureResultOf(result, CancelledError)

    def test_connected_in_the_turn_of_the_cancel(self) -> None:
        closed: list[int] = []

        @implementer(IStreamClientEndpoint)
        class Stubborn:
            def connect(self, factory: Any) -> Deferred[Any]:
                def canceller(attempt: Deferred[Any]) -> None:
                    protocol = factory.buildProtocol(None)
                    protocol.transport = type("T", (), {"loseConnection": lambda self: closed.append(1)})()
                    attempt.callback(protocol)

                return Deferred(canceller)

        result = EndpointConnector(self.clock, Stubborn()).connect(Recorder)
        result.cancel()
        self.successResultOf(result)

    def test_default_never_gives_up(self) -> None:
        @implementer(IStreamClientEndpoint)
        class Never:
            count = 0

            def connect(self, factory: Any) -> Deferred[Any]:
                self.count += 1
                return fail(ConnectionRefusedError())

        never = Never()
        result = EndpointConnector(self.clock, never).connect(Recorder)
        self.clock.pump([6] * 200)
        self.assertEqual(never.count, 201)
        self.assertNoResult(result)
        result.cancel()
        self.failureResultOf(result, CancelledError)


class RealTests(NetworkTestCase):
    async def test_unix_waits_for_the_listener(self) -> None:
        connector = UnixConnector(
            self.reactor, self.path(), retry=RetryPolicy(first_delay=0.01, max_delay=0.02)
        )
        attempt = connector.connect(Recorder)
        self.reactor.callLater(
            0.05,
            lambda: self.start(
                UnixListener(
                    self.reactor, self.path(), DelegateCreator(lambda a: Recorder(lambda data: data))
                )
            ),
        )
        client = await attempt
        client.transport.write(b"x")
        await client.when_received(1)

    async def test_unix_nobody_there(self) -> None:
        connector = UnixConnector(self.reactor, self.path(), retry=RetryPolicy.once())
        error = await self.assertFailure(connector.connect(Recorder), NotRunning)
        self.assertIn(self.path(), str(error))
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(self.path())
        stale.close()
        await self.assertFailure(connector.connect(Recorder), NotRunning)

    async def test_tcp(self) -> None:
        service = self.start(
            TcpListener(self.reactor, 0, DelegateCreator(lambda a: Recorder(lambda data: data)), interface="")
        )
        for host in ("127.0.0.1", "localhost"):
            client = await TcpConnector(self.reactor, host, service.get_port()).connect(Recorder)
            self.assertTrue(client.transport.getTcpNoDelay())
            client.transport.write(b"x")
            await client.when_received(1)
        six = self.start(TcpListener(self.reactor, 0, DelegateCreator(lambda a: Recorder()), interface="::1"))
        await TcpConnector(self.reactor, "::1", six.get_port()).connect(Recorder)

    async def test_localhost_is_both_loopbacks(self) -> None:
        six = self.start(
            TcpListener(
                self.reactor, 0, DelegateCreator(lambda a: Recorder(lambda data: data)), interface="::1"
            )
        )
        connector = TcpConnector(self.reactor, "localhost", six.get_port(), retry=RetryPolicy.once())
        client = await connector.connect(Recorder)
        client.transport.write(b"x")
        await client.when_received(1)
        nobody = TcpConnector(self.reactor, "localhost", free_port(), retry=RetryPolicy.once())
        await self.assertFailure(nobody.connect(Recorder), NotRunning)

    async def test_tcp_nobody_there(self) -> None:
        connector = TcpConnector(self.reactor, "127.0.0.1", free_port(), retry=RetryPolicy.once())
        await self.assertFailure(connector.connect(Recorder), NotRunning)

    def test_bad_targets(self) -> None:
        self.assertRaises(ConfigError, TcpConnector, self.reactor, "127.0.0.1", 65536)
        self.assertRaises(ConfigError, TcpConnector, self.reactor, "127.0.0.1", 0)
        self.assertRaises(ConfigError, UnixConnector, self.reactor, "x" * 200)

    async def test_service_comes_back_after_a_loss(self) -> None:
        made: list[Recorder] = []
        prepared: list[Recorder] = []

        def build(address: object) -> Recorder:
            made.append(Recorder())
            return made[-1]

        listener = self.start(UnixListener(self.reactor, self.path(), DelegateCreator(build)))
        connector = UnixConnector(
            self.reactor, self.path(), retry=RetryPolicy(first_delay=0.01, max_delay=0.02)
        )
        service = connector.service(lambda: Recorder(half_close=False), prepare=prepared.append)
        self.start(service)
        await wait_until(lambda: made)
        await listener.stopService()
        self.assertFalse(os.path.exists(self.path()))
        listener.startService()
        await wait_until(lambda: len(made) == 2)
        await wait_until(lambda: len(prepared) == 2)
