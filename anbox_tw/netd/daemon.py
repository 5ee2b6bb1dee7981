"""The whole daemon: its four sockets, the kernel's events, and everything undone at the end.

::

    netd = Netd(reactor, socket_dir="/run/anbox-netd")
    netd.setServiceParent(application)

In another network namespace: ``Netd(reactor, ..., namespace=NetworkNamespace("blue"))``; the rest of the process
stays where it is.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from anbox_tw.errors import (
    AlreadyRunning,
    AnboxError,
    ConfigError,
    HostLacks,
    NetworkError,
    PermissionRefused,
)
from anbox_tw.netd._events import Broadcast
from anbox_tw.netd.commands import register_all
from anbox_tw.netd.controllers import DEFAULT_ANDROID, Controllers
from anbox_tw.netd.dnsproxy import DnsProxy, DnsProxyListener
from anbox_tw.netd.fwmarkd import FwmarkListener
from anbox_tw.netd.kernel_journal import SUFFIX as JOURNAL_SUFFIX
from anbox_tw.netd.kernel_journal import KernelJournal
from anbox_tw.netd.listener import FrameworkListener
from anbox_tw.netd.manager import NetlinkManager
from anbox_tw.netd.mdns import MDnsSdListener
from anbox_tw.netd.namespace import NetworkNamespace
from anbox_tw.netd.nft import DEFAULT_TABLE
from anbox_tw.network import Connections, EndpointListener, UnixListener
from anbox_tw.network.adopted import AdoptedUnixEndpoint
from anbox_tw.network.credentials import Credentials, peer_credentials, process_lives

__all__ = [
    "DEFAULT_SOCKET_DIR",
    "SOCKETS",
    "Netd",
    "inherited_sockets",
    "make_socket_directory",
]

DEFAULT_SOCKET_DIR: Final = "/run/anbox-netd"
# in the order in which they are opened: who can connect to `netd` finds the others there
SOCKETS: Final = ("dnsproxyd", "mdns", "fwmarkd", "netd")
# The framework is one client; ndc and tools are a few. Bionic makes one connection for each lookup.
MAX_CLIENTS: Final = 1024
# how long running commands may take when we stop; then they are cancelled
STOP_GRACE_S: Final = 5.0
_SD_LISTEN_FDS_START: Final = 3
# between fork and exec a child closes what it has inherited: milliseconds
ORPHAN_WAIT_S: Final = 1.0
ORPHAN_POLL_S: Final = 0.005


def inherited_sockets(environ: Mapping[str, str]) -> dict[str, int]:
    """The sockets that init (``ANDROID_SOCKET_<name>``) or systemd (``LISTEN_FDS``) has made for us.

    systemd's are told apart by ``FileDescriptorName=``, or, without names, are taken to be in the order of
    `SOCKETS`, ``netd`` first.

    Raises:
        ConfigError: a variable makes no sense.
    """
    found = {}
    if environ.get("LISTEN_PID") == str(os.getpid()):
        count = environ.get("LISTEN_FDS", "0")
        if not count.isdigit() or int(count) > 64:
            raise ConfigError(f"LISTEN_FDS={count!r} is no number of sockets")
        names = environ.get("LISTEN_FDNAMES", "").split(":")
        order = ["netd", "dnsproxyd", "mdns", "fwmarkd"]
        for number in range(int(count)):
            name = names[number] if number < len(names) else ""
            name = name.removeprefix("anbox-").removesuffix(".socket")
            if name not in SOCKETS:
                name = order[number] if number < len(order) else ""
            if name:
                found[name] = _SD_LISTEN_FDS_START + number
    for name in SOCKETS:
        text = environ.get(f"ANDROID_SOCKET_{name}")
        if text is None:
            continue
        if not text.isdigit():
            raise ConfigError(f"ANDROID_SOCKET_{name}={text!r} is no file descriptor")
        found[name] = int(text)
    for name, fd in found.items():
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                good = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
        except OSError as error:
            raise ConfigError(
                f"descriptor {fd}, said to be the socket {name}, is none: {error.strerror}"
            ) from error
        if not good:
            raise ConfigError(f"descriptor {fd}, said to be the socket {name}, is no UNIX stream socket")
    return found


def make_socket_directory(path: str) -> bool:
    """Make a directory for the sockets.

    Returns:
        Whether it is ours to remove, because it was made now, or holds nothing but what a killed daemon has left.

    Raises:
        OSError: it cannot be made.
    """
    if os.path.isdir(path):
        there = set(os.listdir(path))
        return bool(there) and all(name in SOCKETS or name.endswith(JOURNAL_SUFFIX) for name in there)
    os.mkdir(path, 0o755)
    # whatever the umask is: who may connect is the sockets' own mode
    os.chmod(path, 0o755)  # noqa: S103  # as /run and /dev/socket
    return True


class Netd(Service):
    """The daemon as a service.

    Attributes:
        controllers: what the commands act on; also for use from Python.
        creators: what serves each socket, by name, once the daemon has started.
        commands: the listener of ``netd``.
        manager: the kernel's events.
        connections: all accepted connections.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        socket_dir: str = DEFAULT_SOCKET_DIR,
        namespace: NetworkNamespace | None = None,
        sockets: tuple[str, ...] = SOCKETS,
        adopted: Mapping[str, int] | None = None,
        mode: int = 0o660,
        gid: int = -1,
        table: str = DEFAULT_TABLE,
        legacy_dns: bool = False,
        android: int = DEFAULT_ANDROID,
        dry_run: Callable[[str], object] | None = None,
        hosts: str | None = "/etc/hosts",
        system_resolver: str | None = "/etc/resolv.conf",
        on_event: Callable[[Broadcast], object] | None = None,
        remove_leftovers: bool = True,
    ) -> None:
        """Make the daemon; nothing is opened before it starts.

        Args:
            reactor: an fd reactor.
            socket_dir: where the sockets are put; made when it is missing.
            namespace: whose network is served; our own when None. It is closed when the service stops.
            sockets: which to serve.
            adopted: descriptors of listening sockets to use instead of paths, by name.
            mode: of the sockets, in octal.
            gid: group of the sockets, -1 for ours.
            table: name of our nftables table, one for each daemon of a namespace.
            legacy_dns: answer getaddrinfo in the layout of Android 4.4 and 5, whatever ``android`` is.
            android: the release whose forms are spoken where they differ: 5, 6 or 7. With 5 ``firewall enable`` and
                ``clatd stop`` need no argument, and getaddrinfo has the old layout.
            dry_run: called with each change of the kernel instead of making it.
            hosts: a hosts file for lookups.
            system_resolver: a resolv.conf for lookups outside any network.
            on_event: called with each broadcast, too.
            remove_leftovers: whether to take away, at the start, what a killed daemon has left.

        Raises:
            ConfigError: an unknown socket.
        """
        unknown = [name for name in sockets if name not in SOCKETS]
        if unknown:
            raise ConfigError(f"no socket is called {unknown[0]!r}", f"there are {', '.join(SOCKETS)}")
        self.setName("netd")
        self._reactor = reactor
        self.socket_dir = socket_dir
        self._namespace = namespace or NetworkNamespace()
        self._wanted = sockets
        self._adopted = dict(adopted or {})
        self._mode, self._gid = mode, gid
        self._table = table
        self._legacy_dns = legacy_dns or android < 6
        self._android = android
        self._dry_run = dry_run
        self._hosts, self._system_resolver = hosts, system_resolver
        self._heard = on_event
        self._leftovers = remove_leftovers
        self._alone = True
        self._listeners: list[Any] = []
        self._made_directory = False
        self._ready: Deferred[None] | None = None
        self._stopping: Deferred[None] | None = None
        self._claims: list[socket.socket] = []
        self.creators: dict[str, Any] = {}
        self.controllers: Controllers | None = None
        self.manager: NetlinkManager | None = None
        self.mdns: MDnsSdListener | None = None
        self.commands = FrameworkListener("netd", clock=reactor)
        self.connections = Connections(MAX_CLIENTS, name="netd's clients", clock=reactor)

    # -- events

    def broadcast(self, line: Broadcast) -> None:
        """Tell every client of ``netd``."""
        self.commands.broadcast(line.code, line.text)
        if self._heard is not None:
            self._heard(line)

    # -- life

    def startService(self) -> None:
        """Open everything, ``netd`` last.

        Raises:
            HostLacks: pyroute2 is missing or the kernel refuses.
            AlreadyRunning: another daemon has the sockets.
            NetworkError: a socket cannot be made.
        """
        self._stopping = None
        try:
            self._start()
        except BaseException:
            self._abandon()
            raise
        super().startService()
        self._log.info(
            "netd serves {sockets} in {directory}{where}",
            sockets=", ".join(name for name in SOCKETS if name in self._wanted),
            directory=self.socket_dir,
            where=f", network namespace {self._namespace.name}" if self._namespace.name else "",
        )

    def _claim(self) -> None:
        """Have the namespace and the table to ourselves, by abstract names that the kernel frees when we are gone.

        Raises:
            AlreadyRunning: another daemon has our table.
        """
        for name, needed in ((f"anbox-netd/{self._table}", True), ("anbox-netd", False)):
            claim = self._namespace.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._bind(claim, name)
            except OSError as error:
                claim.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                if not self._held_by_a_netd(name):
                    # anybody may take an abstract name; that must not keep us from our work
                    self._log.warn("the name {name} is held by a process that can be no netd", name=name)
                    continue
                if needed:
                    where = (
                        f"the network namespace {self._namespace.name}"
                        if self._namespace.name
                        else "this network namespace"
                    )
                    raise AlreadyRunning(
                        f"a netd with the table {self._table!r} serves {where} already",
                        "choose another --table, or stop it",
                    ) from error
                # one with another table: what carries our protocol number may be its own
                self._alone = False
            else:
                self._claims.append(claim)

    def _bind(self, claim: socket.socket, name: str) -> None:
        deadline = time.monotonic() + ORPHAN_WAIT_S
        holder: Credentials | None = None
        while True:
            try:
                claim.bind("\0" + name)
                claim.listen(1)
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                    raise
                # asked once: nobody takes our questions out of its queue, which is short
                holder = holder or self._holder_of(name)
                if holder is None or holder.pid <= 0 or process_lives(holder.pid):
                    raise
                # A child of a netd that was killed between fork and exec has what its parent had, for a moment.
                time.sleep(ORPHAN_POLL_S)

    def _holder_of(self, name: str) -> Credentials | None:
        """Who listens at an abstract name; None when that cannot be told."""
        with self._namespace.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect("\0" + name)
                return peer_credentials(probe)
            except (OSError, NetworkError):
                return None

    def _held_by_a_netd(self, name: str) -> bool:
        holder = self._holder_of(name)
        # None: no room in its queue, for others ask as well
        return holder is None or holder.uid in (0, os.geteuid())

    def _start(self) -> None:
        if self._dry_run is None:
            self._claim()
        self._make_directory()
        try:
            self.controllers = Controllers(
                self._reactor,
                self._namespace,
                on_event=self.broadcast,
                table=self._table,
                dry_run=self._dry_run,
                hosts=self._hosts,
                system_resolver=self._system_resolver,
                journal=self._journal(),
                android=self._android,
            )
        except OSError as error:
            raise HostLacks(f"rtnetlink cannot be had: {error.strerror}") from error
        self.manager = NetlinkManager(
            self._reactor,
            self.broadcast,
            namespace=self._namespace,
            routes=self.controllers.routes,
            nflog_groups=self.controllers.groups if self._dry_run is None else (),
            on_packet=self.controllers.packet,
        )
        self.manager.startService()
        register_all(self.commands, self.controllers)
        creators = self.creators
        creators["netd"] = self.commands
        proxy = DnsProxy(self.controllers.resolver, self.controllers.networks, self._namespace)
        creators["dnsproxyd"] = DnsProxyListener(proxy, clock=self._reactor, legacy=self._legacy_dns)
        self.mdns = MDnsSdListener(self._reactor, self._namespace)
        creators["mdns"] = self.mdns
        creators["fwmarkd"] = FwmarkListener(self.controllers.networks, clock=self._reactor)
        # commands that come while leftovers are removed wait for that
        let_go = self.commands.hold("netd", "firewall")
        for name in SOCKETS:
            if name in self._wanted:
                listener = self._listen(name, creators[name])
                listener.startService()
                self._listeners.append(listener)
        self._ready = Deferred.fromCoroutine(self._prepare(let_go))

    def _journal(self) -> KernelJournal | None:
        if self._dry_run is not None:
            return None
        there = self.socket_dir if os.path.isdir(self.socket_dir) else os.path.dirname(self.socket_dir)
        if not os.access(there, os.W_OK | os.X_OK):
            self._log.warn(
                "{directory} cannot be written: what is changed stays, should this netd be killed",
                directory=self.socket_dir,
            )
            return None
        return KernelJournal.of(self.socket_dir, self._table, self._namespace)

    def _make_directory(self) -> None:
        if not self._wanted or all(name in self._adopted for name in self._wanted):
            return
        try:
            self._made_directory = make_socket_directory(self.socket_dir)
        except OSError as error:
            raise PermissionRefused(
                f"the directory {self.socket_dir} cannot be made: {error.strerror}",
                "choose one with --socket-dir",
            ) from error

    def _listen(self, name: str, creator: Any) -> Any:
        fd = self._adopted.get(name)
        if fd is None:
            path = os.path.join(self.socket_dir, name)
            return UnixListener(
                self._reactor,
                path,
                creator,
                mode=self._mode,
                gid=self._gid,
                registry=self.connections,
                name=name,
            )
        os.set_inheritable(fd, False)
        return EndpointListener(
            AdoptedUnixEndpoint(self._reactor, fd),
            creator,
            registry=self.connections,
            name=name,
            tcp_no_delay=False,
            clock=self._reactor,
        )

    async def _prepare(self, let_go: Callable[[], None]) -> None:
        assert self.controllers is not None
        assert self.manager is not None
        try:
            if self._leftovers and self._dry_run is None:
                await self.controllers.remove_leftovers(marked=self._alone)
        except AnboxError as error:
            # commands that need it will fail for the same reason, and say so
            self._log.warn("what a former daemon may have left cannot be removed: {error}", error=error)
        finally:
            let_go()
        await self.manager.when_ready()

    def when_ready(self) -> Deferred[None]:
        """Fires when leftovers are gone and commands run; at once when nothing has been started."""
        waiter: Deferred[None] = Deferred()
        if self._ready is None:
            waiter.callback(None)
            return waiter

        def fired(result: Any) -> Any:
            waiter.callback(None)
            return result

        self._ready.addBoth(fired)
        return waiter

    def _abandon(self) -> None:
        """A start that failed: close what was opened; nothing in the kernel has been changed yet."""
        for listener in self._listeners:
            listener.stopService().addErrback(
                lambda failure: self._log.failure("closing a listener", failure)
            )
        self._listeners.clear()
        if self.manager is not None and self.manager.running:
            self.manager.stopService()
        if self.controllers is not None:
            self.controllers.routes.close()
        self._let_go()
        self._remove_directory()
        self._namespace.close()

    def stopService(self) -> Deferred[None]:
        """Stop, and bring the namespace back to what it was; fires when that is done."""
        super().stopService()
        if self._stopping is None:
            self._stopping = Deferred.fromCoroutine(self._stop())
        waiter: Deferred[None] = Deferred()

        def fired(result: Any) -> Any:
            waiter.callback(None)
            return result

        self._stopping.addBoth(fired)
        return waiter

    async def _stop(self) -> None:
        listeners, self._listeners = self._listeners, []
        late = self._reactor.callLater(STOP_GRACE_S, self.commands.cancel_work)
        try:
            await DeferredList([listener.stopService() for listener in listeners], consumeErrors=True)
            if self.mdns is not None:
                await self.mdns.stop()
            await self.when_ready()
            await self.commands.when_idle()
        except Exception:
            self._log.failure("stopping the sockets failed")
        finally:
            if late.active():
                late.cancel()
        if self.manager is not None:
            await self.manager.stopService()
        if self.controllers is not None:
            await self.controllers.undo()
        self._let_go()
        self._remove_directory()
        self._namespace.close()

    def _let_go(self) -> None:
        claims, self._claims = self._claims, []
        for claim in claims:
            claim.close()

    def _remove_directory(self) -> None:
        if self._made_directory:
            self._made_directory = False
            try:
                os.rmdir(self.socket_dir)
            except OSError as error:
                self._log.debug("{directory} stays: {error}", directory=self.socket_dir, error=error.strerror)
