"""Connecting out to UNIX sockets and TCP ports, again and again until it works or a policy gives up."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import field, frozen, validators
from twisted.application.internet import ClientService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IAddress, IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import ConfigError, NetworkError, NotRunning, PermissionRefused, TimedOut
from anbox_tw.network._published import check_path

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

__all__ = [
    "EndpointConnector",
    "LoopbackEndpoint",
    "RetryPolicy",
    "TcpConnector",
    "UnixConnector",
    "tcp_client_endpoint",
]

# Peers here are on this host or one hop away; a connect that hangs longer is not answered at all.
CONNECT_TIMEOUT_S: Final = 10.0
# nothing that we do at these makes the next attempt work
_HOPELESS: Final = {
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EPROTOTYPE,
    errno.ENOTSOCK,
    errno.EAFNOSUPPORT,
}

_P = TypeVar("_P", bound=IProtocol)


@frozen
class RetryPolicy:
    """How often and how long to try.

    Attributes:
        first_delay: seconds between the first failure and the second attempt.
        factor: by which each delay is longer than the one before.
        max_delay: seconds, no delay is longer.
        jitter: each delay is off by up to this fraction either way, so that many clients do not come back at once.
        attempts: give up after so many, None for no limit.
        deadline: give up so many seconds after the first attempt began, None for no limit.
    """

    first_delay: float = field(default=0.1, validator=validators.ge(0))
    factor: float = field(default=1.5, validator=validators.ge(1))
    max_delay: float = field(default=5.0, validator=validators.ge(0))
    jitter: float = field(default=0.1, validator=[validators.ge(0), validators.lt(1)])
    attempts: int | None = None
    deadline: float | None = None

    def delay(self, failures: int, random_number: Callable[[], float] = random.random) -> float:
        """Seconds to wait after so many failures in a row; never negative."""
        # the exponent is bounded: a float overflows after some thousand failures
        plain = min(self.max_delay, self.first_delay * self.factor ** min(max(failures - 1, 0), 64))
        return plain * (1 + self.jitter * (2 * random_number() - 1))

    @classmethod
    def once(cls) -> RetryPolicy:
        """One attempt, no retry."""
        return cls(attempts=1)


class EndpointConnector:
    """Connects to any Twisted client endpoint under a `RetryPolicy`.

    Attributes:
        endpoint: where to.
        retry: the policy.
        description: of the target, for messages.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        *,
        retry: RetryPolicy | None = None,
        description: str = "",
    ) -> None:
        """Make a connector; it can be used for any number of connections.

        Args:
            reactor: the clock of the delays.
            endpoint: where to.
            retry: a policy, None for the default one, which never gives up.
            description: of the target, for messages.
        """
        self._reactor = reactor
        self.endpoint = endpoint
        self.retry = retry if retry is not None else RetryPolicy()
        self.description = description or repr(endpoint)

    def connect(self, factory: Callable[[], _P]) -> Deferred[_P]:
        """Connect, trying again as the policy says.

        Args:
            factory: makes the protocol of the connection, a new one for each attempt that gets through.

        Returns:
            A Deferred that fires with the connected protocol. Cancelling it ends the attempt or the wait.
            It fails with `NotRunning` when nobody was there until the policy gave up, `TimedOut` when the last
            attempt was not answered, `PermissionRefused` at once when trying again cannot help, and `NetworkError`
            for the rest.
        """
        return _Attempts(self, factory).start()

    def service(
        self, factory: Callable[[], IProtocol], *, prepare: Callable[[Any], Any] | None = None
    ) -> ClientService:
        """A Twisted service that keeps one connection open and makes it anew when it is lost.

        Args:
            factory: makes the protocol of each connection.
            prepare: called with each connected protocol; may return a Deferred. A peer that accepts and closes counts
                as a failure (and the delays grow) only when this fails, so put the handshake here.
        """
        return ClientService(
            self.endpoint,
            _CallableFactory(factory),
            retryPolicy=self.retry.delay,
            clock=self._reactor,
            prepareConnection=prepare,
        )


class _CallableFactory(Factory):
    noisy = False

    def __init__(self, build: Callable[[], IProtocol]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._build()


class _Attempts:
    """One `EndpointConnector.connect`: attempts and waits until one of them ends it."""

    def __init__(self, connector: EndpointConnector, factory: Callable[[], Any]) -> None:
        self._connector = connector
        self._factory = _CallableFactory(factory)
        self._clock = connector._reactor
        self._failures = 0
        self._cancelled = False
        self._started = self._clock.seconds()
        self._attempt: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._result: Deferred[Any] = Deferred(lambda _: self._cancel())

    def start(self) -> Deferred[Any]:
        self._try()
        return self._result

    def _cancel(self) -> None:
        self._cancelled = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._attempt is not None:
            self._attempt.cancel()

    def _try(self) -> None:
        self._timer = None
        attempt = self._attempt = self._connector.endpoint.connect(self._factory)
        attempt.addCallbacks(self._connected, self._failed)

    def _connected(self, protocol: Any) -> None:
        self._attempt = None
        if self._result.called:
            # cancelled in the same turn
            protocol.transport.loseConnection()
        else:
            self._result.callback(protocol)

    def _failed(self, failure: Failure) -> None:
        self._attempt = None
        # an endpoint that is cancelled fails with an error of its own kind
        if self._result.called or self._cancelled or failure.check(CancelledError):
            if not self._result.called:
                self._result.errback(CancelledError() if self._cancelled else failure)
            return
        self._failures += 1
        policy = self._connector.retry
        delay = policy.delay(self._failures)
        spent = self._clock.seconds() - self._started
        used_up = policy.attempts is not None and self._failures >= policy.attempts
        too_late = policy.deadline is not None and spent + delay > policy.deadline
        if used_up or too_late or _code(failure) in _HOPELESS:
            self._give_up(failure, spent)
        else:
            self._connector._log.debug(
                "{target}: attempt {count} failed: {error}; again in {delay:.2f} s",
                target=self._connector.description,
                count=self._failures,
                error=failure.value,
                delay=delay,
            )
            self._timer = self._clock.callLater(delay, self._try)

    def _give_up(self, failure: Failure, spent: float) -> None:
        error = failure.value
        what = f"cannot connect to {self._connector.description}: {_reason(error)}"
        if self._failures > 1:
            what += f"; gave up after {self._failures} attempts in {spent:.1f} s"
        code = _code(failure)
        new: NetworkError | NotRunning | PermissionRefused | TimedOut
        if code in (errno.EACCES, errno.EPERM):
            new = PermissionRefused(what, "be a member of the socket's group, or run as its owner")
        elif code in (errno.ENOENT, errno.ECONNREFUSED):
            new = NotRunning(what, "start what should listen there")
        elif type(error).__name__ in ("TimeoutError", "TCPTimedOutError") or code == errno.ETIMEDOUT:
            new = TimedOut(what)
        else:
            new = NetworkError(what)
        new.__cause__ = error
        self._result.errback(Failure(new))


def _code(failure: Failure) -> int | None:
    error = failure.value
    code = (
        getattr(error, "osError", None) if isinstance(error, ConnectError) else getattr(error, "errno", None)
    )
    return code if isinstance(code, int) else None


def _reason(error: BaseException | None) -> str:
    text = str(error)
    return text.rstrip(".") or type(error).__name__


class UnixConnector(EndpointConnector):
    """Connects to a UNIX socket; see `EndpointConnector`."""

    def __init__(
        self, reactor: Any, path: str, *, retry: RetryPolicy | None = None, timeout: float = CONNECT_TIMEOUT_S
    ) -> None:
        """Make a connector.

        Args:
            reactor: an IReactorUNIX.
            path: of the socket; it need not exist yet.
            retry: a policy, None for the default one, which never gives up.
            timeout: seconds for one attempt.

        Raises:
            ConfigError: the path cannot be a socket's.
        """
        self.path = check_path(path)
        endpoint = UNIXClientEndpoint(reactor, self.path, timeout=timeout)
        super().__init__(reactor, endpoint, retry=retry, description=self.path)


@implementer(IStreamClientEndpoint)
class LoopbackEndpoint:
    """This host's loopback: 127.0.0.1, and where nobody listens there, ``::1``.

    ``localhost`` means both (RFC 6761, section 6.3), whatever the hosts file has; adb connects so too (AOSP
    ``network_loopback_client``).

    Args:
        reactor: an IReactorTCP.
        port: to connect to.
        timeout: seconds for each of the two.
    """

    def __init__(self, reactor: Any, port: int, timeout: float = CONNECT_TIMEOUT_S) -> None:
        self._first = TCP4ClientEndpoint(reactor, "127.0.0.1", port, timeout=timeout)
        self._second = TCP6ClientEndpoint(reactor, "::1", port, timeout=timeout)

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """See ``IStreamClientEndpoint``; fails with what the first address said."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: Any) -> Any:
        try:
            return await self._first.connect(factory)
        except ConnectError as refused:
            try:
                return await self._second.connect(factory)
            except ConnectError:
                raise refused from None


def tcp_client_endpoint(
    reactor: Any, host: str, port: int, *, timeout: float = CONNECT_TIMEOUT_S
) -> IStreamClientEndpoint:
    """What connects to a TCP port of a host.

    Args:
        reactor: an IReactorTCP.
        host: an IPv4 or IPv6 address, ``localhost``, or a name.
        port: to connect to.
        timeout: seconds for one address.
    """
    if ":" in host:
        return TCP6ClientEndpoint(reactor, host, port, timeout=timeout)
    if host == "localhost":
        return LoopbackEndpoint(reactor, port, timeout)
    if host.replace(".", "").isdigit():
        return TCP4ClientEndpoint(reactor, host, port, timeout=timeout)
    return HostnameEndpoint(reactor, host, port, timeout=timeout)


class TcpConnector(EndpointConnector):
    """Connects to a TCP port, with TCP_NODELAY; see `EndpointConnector`."""

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        *,
        retry: RetryPolicy | None = None,
        timeout: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """Make a connector.

        Args:
            reactor: an IReactorTCP.
            host: IPv4 or IPv6 address, or a name.
            port: 1 to 65535.
            retry: a policy, None for the default one, which never gives up.
            timeout: seconds for one attempt.

        Raises:
            ConfigError: the port is none.
        """
        if not 0 < port < 65536:
            raise ConfigError(f"{port} is no TCP port", "use 1 to 65535")
        self.host, self.port = host, port
        endpoint = tcp_client_endpoint(reactor, host, port, timeout=timeout)
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        super().__init__(reactor, endpoint, retry=retry, description=where)

    def connect(self, factory: Callable[[], _P]) -> Deferred[_P]:
        """See `EndpointConnector.connect`."""

        def no_delay(protocol: Any) -> Any:
            set_no_delay = getattr(protocol.transport, "setTcpNoDelay", None)
            if set_no_delay is not None:
                set_no_delay(True)
            return protocol

        return super().connect(factory).addCallback(no_delay)
