"""``MDnsSdListener``: DNS service discovery for the framework, by way of python-zeroconf.

Facts: AOSP ``system/netd/server/MDnsSdListener.cpp`` (android-7.0), which speaks to Apple's mdnsd; error numbers in
events are that library's. zeroconf runs an event loop in a thread of its own, and what waits in it waits in a small
thread pool of ours.
"""

from __future__ import annotations

import base64
import binascii
import socket
from collections.abc import Callable
from typing import Any, Final

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from anbox_tw.errors import HostLacks
from anbox_tw.netd._framing import encode_event, quote_argument
from anbox_tw.netd.codes import ResponseCode
from anbox_tw.netd.commands._base import atoi
from anbox_tw.netd.errors import CommandFailed, parameter, syntax
from anbox_tw.netd.listener import FrameworkCommand, FrameworkListener, Request
from anbox_tw.netd.namespace import NetworkNamespace

__all__ = ["MDnsSdListener", "escape_service_name"]

# dns_sd.h: kDNSServiceErr_Unknown, _NoSuchName, _Timeout, _NameConflict
ERR_UNKNOWN, ERR_NO_SUCH_NAME, ERR_TIMEOUT, ERR_NAME_CONFLICT = -65537, -65538, -65568, -65548
# MDnsSdListener.cpp: the buffer a TXT record is decoded into
MAX_TXT_BYTES: Final = 1300
MAX_REQUESTS: Final = 128
RESOLVE_TIMEOUT_MS: Final = 3000
DEFAULT_TTL_S: Final = 120
# threads that wait in zeroconf
MAX_THREADS: Final = 4


def escape_service_name(name: str) -> str:
    """One label of a service's full name as mdnsd writes it: dots and backslashes escaped, the rest by number."""
    out = []
    for char in name:
        if char in ".\\":
            out.append("\\" + char)
        elif char <= " " or char == "\x7f":
            out.append(f"\\{ord(char):03d}")
        else:
            out.append(char)
    return "".join(out)


def _type(text: str) -> str:
    return text.rstrip(".") + ".local."


@define
class _Request:
    """A running operation; ``stop`` ends it and may wait, so it is called in a thread."""

    kind: str
    stop: Callable[[], object] | None = None
    work: Deferred[Any] | None = None


class MDnsSdListener(FrameworkListener):
    """The ``mdns`` socket."""

    _log = Logger()

    def __init__(self, reactor: Any, namespace: NetworkNamespace | None = None) -> None:
        super().__init__("mdns", clock=reactor)
        self._reactor = reactor
        self._namespace = namespace or NetworkNamespace()
        self._zeroconf: Any = None
        self._library: Any = None
        self._pool: ThreadPool | None = None
        self._requests: dict[int, _Request] = {}
        self._host_name: str | None = None
        self.register(FrameworkCommand("mdnssd", self._run, lock_name="mdns"))

    # -- life

    def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if self._pool is None:
            self._pool = ThreadPool(0, MAX_THREADS, name="mdns")
            self._pool.start()
        return deferToThreadPool(self._reactor, self._pool, call, *arguments)

    async def start_zeroconf(self) -> bool:
        """Start speaking mDNS; returns False when we do already.

        Raises:
            HostLacks: zeroconf is not installed, or finds no interface.
        """
        if self._zeroconf is not None:
            return False
        try:
            import zeroconf
        except ImportError as error:
            raise HostLacks(
                "mdns needs zeroconf, which is not installed", "pip install 'anbox-tw[mdns]'"
            ) from error
        self._library = zeroconf

        def begin() -> Any:
            # its sockets are made by this thread, which goes back to our own namespace afterwards
            with self._namespace.entered():
                return zeroconf.Zeroconf(ip_version=zeroconf.IPVersion.V4Only)

        try:
            self._zeroconf = await self._in_thread(begin)
        except OSError as error:
            raise HostLacks(f"mDNS cannot be spoken here: {error}") from error
        return True

    async def stop_zeroconf(self) -> bool:
        """Stop speaking mDNS; returns False while there are requests."""
        if self._requests:
            return False
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is not None:
            await self._in_thread(zeroconf.close)
        return True

    async def stop(self) -> None:
        """End every request, and the threads."""
        for number in list(self._requests):
            await self._end(number)
        await self.stop_zeroconf()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.stop()

    async def _end(self, number: int) -> None:
        request = self._requests.pop(number)
        if request.stop is not None:
            try:
                await self._in_thread(request.stop)
            except Exception:
                self._log.failure("ending {kind} {number} failed", kind=request.kind, number=number)

    # -- commands

    async def _run(self, request: Request) -> None:
        words = request.arguments
        if len(words) < 2:
            raise parameter(f"Invalid number of arguments to mdnssd: {len(words)}")
        word = words[1]
        if word == "start-service":
            await self._start_service(request)
        elif word == "stop-service":
            if not await self.stop_zeroconf():
                raise CommandFailed(ResponseCode.SERVICE_STOP_FAILED, "Service still in use")
            request.reply(ResponseCode.OKAY, "Service Stopped")
        elif word in ("discover", "register", "resolve", "sethostname", "getaddrinfo"):
            await self._begin(request, word, words)
        elif word.removeprefix("stop-") in ("discover", "register", "resolve", "sethostname", "getaddrinfo"):
            await self._stop_request(request, word.removeprefix("stop-"), words)
        else:
            raise syntax("Unknown mdnssd cmd")

    async def _start_service(self, request: Request) -> None:
        try:
            started = await self.start_zeroconf()
        except HostLacks as error:
            raise CommandFailed(ResponseCode.SERVICE_START_FAILED, str(error)) from error
        if not started:
            raise CommandFailed(ResponseCode.SERVICE_START_FAILED, "Service already running")
        request.reply(ResponseCode.OKAY, "Service Started")

    async def _stop_request(self, request: Request, kind: str, words: list[str]) -> None:
        if len(words) != 3:
            raise parameter(f"Invalid number of arguments to {kind}")
        number = atoi(words[2], 32)
        if number not in self._requests:
            raise parameter("Unknown requestId")
        await self._end(number)
        request.reply(ResponseCode.OKAY, f"{kind} stopped")

    async def _begin(self, request: Request, kind: str, words: list[str]) -> None:
        count = {"discover": 4, "register": 7, "resolve": 6, "sethostname": 4, "getaddrinfo": 4}[kind]
        if len(words) != count:
            raise parameter(f"Invalid number of arguments to mdnssd {kind}")
        names = {
            "discover": ("discover", "Discover operation", "Discover request", "DNSServiceBrowse"),
            "register": ("register", "serviceRegister", "serviceRegister request", "DNSServiceRegister"),
            "resolve": ("resolve", "resolveService", "resolveService", "DNSServiceResolve"),
            "sethostname": ("setHostname", "setHostname", "setHostname", "DNSSetHostname"),
            "getaddrinfo": ("getAddrInfo", "getAddrInfo", "getAddrInfo request", "DNSServiceGetAddrInfo"),
        }
        call, started, what, function = names[kind]
        txt = b""
        if kind == "register":
            try:
                txt = base64.b64decode(words[6], validate=True)
            except (binascii.Error, ValueError):
                raise parameter("Could not decode txtRecord") from None
            if len(txt) > MAX_TXT_BYTES:
                raise parameter("Could not decode txtRecord")
        number = atoi(words[2], 32)
        if number in self._requests:
            raise parameter(f"RequestId already in use during {call} call")
        if self._zeroconf is None or len(self._requests) >= MAX_REQUESTS:
            raise parameter(f"{what} got an error from {function}")
        running = _Request(kind)
        self._requests[number] = running
        # the reply comes before the first event
        request.reply(ResponseCode.OKAY, f"{started} started")
        begin = {
            "discover": self._discover,
            "register": self._register,
            "resolve": self._resolve,
            "sethostname": self._set_hostname,
            "getaddrinfo": self._get_address,
        }[kind]
        running.work = Deferred.fromCoroutine(begin(number, running, words, txt))
        running.work.addErrback(lambda failure: self._log.failure("mdnssd {kind} failed", failure, kind=kind))

    def _tell(self, number: int, running: _Request, code: int, text: str) -> None:
        # what ends late must not speak for a request that has been stopped, or for a newer one of its number
        if self._requests.get(number) is running:
            self.broadcast_raw(encode_event(code, f"{number} {text}".replace("\0", "")))

    async def _discover(self, number: int, running: _Request, words: list[str], txt: bytes) -> None:
        wanted = _type(words[3])
        regtype = words[3].rstrip(".") + "."
        change = self._library.ServiceStateChange

        def changed(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
            if state_change is change.Updated:
                return
            code = (
                ResponseCode.SERVICE_DISCOVERY_ADDED
                if state_change is change.Added
                else ResponseCode.SERVICE_DISCOVERY_REMOVED
            )
            label = name.removesuffix("." + service_type)
            self._reactor.callFromThread(
                self._tell, number, running, code, f"{quote_argument(label)} {regtype} local."
            )

        try:
            browser = await self._in_thread(
                lambda: self._library.ServiceBrowser(self._zeroconf, wanted, handlers=[changed])
            )
        except Exception as error:
            self._log.debug("discover {type}: {error}", type=wanted, error=error)
            self._tell(number, running, ResponseCode.SERVICE_DISCOVERY_FAILED, str(ERR_UNKNOWN))
            return
        await self._keep(number, running, browser.cancel)

    async def _keep(self, number: int, running: _Request, stop: Callable[[], object]) -> None:
        if self._requests.get(number) is running:
            running.stop = stop
        else:
            # stopped while it began
            await self._in_thread(stop)

    async def _register(self, number: int, running: _Request, words: list[str], txt: bytes) -> None:
        kind, port = _type(words[4]), atoi(words[5], 32)
        name = words[3]

        def begin() -> Any:
            host = self._host_name or socket.gethostname().partition(".")[0]
            with self._namespace.entered():
                addresses = [
                    address for address in self._library.get_all_addresses() if not address.startswith("127.")
                ]
            info = self._library.ServiceInfo(
                kind,
                f"{name}.{kind}",
                port=port,
                properties=txt,
                server=f"{host}.local.",
                parsed_addresses=addresses or ["127.0.0.1"],
            )
            self._zeroconf.register_service(info, allow_name_change=True)
            return info

        try:
            info = await self._in_thread(begin)
        except Exception as error:
            self._log.debug("register {name}: {error}", name=name, error=error)
            conflict = isinstance(error, self._library.NonUniqueNameException)
            code = ERR_NAME_CONFLICT if conflict else ERR_UNKNOWN
            self._tell(number, running, ResponseCode.SERVICE_REGISTRATION_FAILED, str(code))
            return
        zeroconf = self._zeroconf
        await self._keep(number, running, lambda: zeroconf.unregister_service(info))
        told = info.name.removesuffix("." + kind)
        self._tell(number, running, ResponseCode.SERVICE_REGISTRATION_SUCCEEDED, quote_argument(told))

    async def _resolve(self, number: int, running: _Request, words: list[str], txt: bytes) -> None:
        kind, name = _type(words[4]), words[3]
        try:
            info = await self._in_thread(
                lambda: self._zeroconf.get_service_info(kind, f"{name}.{kind}", timeout=RESOLVE_TIMEOUT_MS)
            )
        except Exception as error:
            self._log.debug("resolve {name}: {error}", name=name, error=error)
            self._tell(number, running, ResponseCode.SERVICE_RESOLVE_FAILED, str(ERR_UNKNOWN))
            return
        if info is None or info.server is None:
            self._tell(number, running, ResponseCode.SERVICE_RESOLVE_FAILED, str(ERR_TIMEOUT))
            return
        full = f"{escape_service_name(name)}.{kind}"
        record = info.text or b""
        text = f"{quote_argument(full)} {quote_argument(info.server)} {info.port} {len(record)}"
        encoded = base64.b64encode(record).decode()
        self._tell(number, running, ResponseCode.SERVICE_RESOLVE_SUCCESS, f'{text} "{encoded}"')

    async def _set_hostname(self, number: int, running: _Request, words: list[str], txt: bytes) -> None:
        self._host_name = words[3].removesuffix(".").removesuffix(".local") or None
        self._tell(number, running, ResponseCode.SERVICE_SET_HOSTNAME_SUCCESS, quote_argument(words[3]))

    async def _get_address(self, number: int, running: _Request, words: list[str], txt: bytes) -> None:
        name = words[3].rstrip(".") + "."

        def ask() -> list[str]:
            resolver = self._library.AddressResolver(name)
            if not resolver.request(self._zeroconf, RESOLVE_TIMEOUT_MS):
                return []
            return list(resolver.parsed_addresses())

        try:
            addresses = await self._in_thread(ask)
        except Exception as error:
            self._log.debug("getaddrinfo {name}: {error}", name=name, error=error)
            addresses = []
        if not addresses:
            self._tell(number, running, ResponseCode.SERVICE_GET_ADDR_INFO_FAILED, str(ERR_NO_SUCH_NAME))
        for address in addresses:
            self._tell(
                number,
                running,
                ResponseCode.SERVICE_GET_ADDR_INFO_SUCCESS,
                f"{quote_argument(name)} {DEFAULT_TTL_S} {address}",
            )
