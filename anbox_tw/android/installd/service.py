"""installd as a Twisted service: many clients, one request of each at a time, work in threads of its own."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet import threads
from twisted.internet.defer import Deferred, DeferredLock, ensureDeferred, maybeDeferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IAddress, IPushProducer, IStreamServerEndpoint
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from anbox_tw.android.installd._commands import RELEASES, BadArgument, parse_arguments
from anbox_tw.android.installd._framing import MessageReader, encode_message, format_reply, split_command
from anbox_tw.android.installd.older import OlderOperations
from anbox_tw.android.installd.tree import OutsideRoot, Tree
from anbox_tw.errors import PeerError

__all__ = ["MAX_CLIENTS", "TOOLS", "InstalldService"]

MAX_CLIENTS = 64
"""Connections at one time; the framework has one."""

MESSAGE_TIMEOUT_S = 10.0
"""How long a message that has begun may take to arrive. Between messages a client may be silent for ever."""

MAX_PENDING_BYTES = 64 * 1025
"""Requests a client may have sent ahead; it is not read from beyond that."""

TOOL_TIMEOUT_S = 600.0
"""How long an external tool may run."""

THREADS = 4
"""Commands that work at the same time."""

TOOLS = ("dexopt", "patchoat", "idmap", "aapt", "profman")
"""External programs that can be given; without one its commands are refused."""

_TOOL_COMMANDS = {
    "dexopt": "dexopt",
    "patchoat": "patchoat",
    "idmap": "idmap",
    "aapt": "aapt",
    "aapt_with_common": "aapt",
    "merge_profiles": "profman",
    "dump_profiles": "profman",
}

DEXOPT_OTA = 64

Reply = int | tuple[int, str]


@implementer(IPushProducer)
class _Client(Protocol):
    """One connection; it produces replies."""

    transport: Any
    log = Logger()

    def __init__(self, service: InstalldService) -> None:
        self._service = service
        self._reader = MessageReader()
        self._busy = False
        self._unread = False
        self._timeout: Any = None
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self._service.clients.add(self)
        self.transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        # replies pile up: no further request is read or run until the peer has taken them
        self._unread = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._unread = False
        if not self._busy:
            self._busy = True
            self._service.reactor.callLater(0, self._go_on)

    def stopProducing(self) -> None:
        """The connection is lost, and ``connectionLost`` hears of it."""

    def dataReceived(self, data: bytes) -> None:
        self._reader.feed(data)
        if self._busy:
            if self._reader.pending > MAX_PENDING_BYTES:
                self.transport.pauseProducing()
            return
        self._next()

    def _next(self) -> None:
        # a loop, not recursion: thousands of pings may lie in one read
        while not (self._busy or self._unread):
            if self._timeout is not None:
                self._timeout.cancel()
                self._timeout = None
            try:
                text = self._reader.next()
            except PeerError as error:
                self.log.warn("{cause}: connection closed", cause=error.cause)
                # what was answered before still goes out, to a peer that reads it
                self._busy = True
                self.transport.unregisterProducer()
                self.transport.loseConnection()
                self._timeout = self._service.reactor.callLater(MESSAGE_TIMEOUT_S, self._late)
                return
            if text is None:
                if self._reader.pending:
                    self._timeout = self._service.reactor.callLater(MESSAGE_TIMEOUT_S, self._late)
                self.transport.resumeProducing()
                return
            self._busy = True
            self._service.execute(text).addBoth(self._done)

    def _done(self, reply: bytes | Failure) -> None:
        self._busy = False
        if isinstance(reply, Failure):
            self.log.failure("a command failed", reply)
            reply = format_reply(-1)
        if self.transport.connected:
            self.transport.write(encode_message(reply))
            # never inside its own call chain
            if self._reader.pending:
                self._busy = True
                self._service.reactor.callLater(0, self._go_on)

    def _go_on(self) -> None:
        self._busy = False
        if self.transport.connected:
            self._next()

    def _late(self) -> None:
        self._timeout = None
        self.log.warn("the peer did not go on in time: connection closed")
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
        self._service.clients.discard(self)
        self.gone.callback(None)


class _ClientFactory(Factory):
    noisy = False

    def __init__(self, service: InstalldService) -> None:
        self._service = service

    def buildProtocol(self, addr: IAddress | None) -> _Client | None:
        if len(self._service.clients) >= MAX_CLIENTS:
            self._service.log.warn("{count} clients at one time: connection closed", count=MAX_CLIENTS)
            return None
        return _Client(self._service)


class _Tool(ProcessProtocol):
    def __init__(self) -> None:
        self.ended: Deferred[int] = Deferred()

    def processEnded(self, reason: Failure) -> None:
        if not self.ended.called:
            value: Any = reason.value
            code = 0 if reason.check(ProcessDone) else value.exitCode
            self.ended.callback(-1 if code is None else code)


class InstalldService(Service):
    """Serves the data tree.

    Attributes:
        reactor: the reactor.
        operations: what the commands do.
        clients: the connections.
        counts: how many requests were answered, by command (``?`` for unknown ones).
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        tree: Tree,
        endpoint: IStreamServerEndpoint,
        *,
        release: str = "7.0",
        tools: Mapping[str, str] | None = None,
        jit_profiles: bool = False,
    ) -> None:
        """Remember what to serve.

        Args:
            reactor: the reactor.
            tree: with the roots ``/data`` and ``/mnt/expand``.
            endpoint: where to listen.
            release: whose commands: one of ``RELEASES``.
            tools: programs by the names of ``TOOLS``.
            jit_profiles: make profiles for applications.
        """
        self.reactor = reactor
        self.operations = OlderOperations(tree, jit_profiles=jit_profiles)
        self._endpoint = endpoint
        self._commands = RELEASES[release]
        self._tools = dict(tools or {})
        self._port: Any = None
        self._pool: ThreadPool | None = None
        self._locks: dict[str, DeferredLock] = {}
        self._running_tools: set[Any] = set()
        self.clients: set[_Client] = set()
        self.counts: dict[str, int] = {}
        self.when_listening: Deferred[Any] = Deferred()

    def startService(self) -> None:
        """Prepare the tree, then listen; a failure is raised where it is known at once, and logged otherwise.

        Raises:
            Exception: what the endpoint failed with.
        """
        if self._pool is not None:
            return
        super().startService()
        self._pool = ThreadPool(0, THREADS, "installd")
        self._pool.start()
        # before anybody can connect, as on Android
        self.operations.prepare()
        failures: list[Failure] = []
        self._endpoint.listen(_ClientFactory(self)).addCallbacks(self._listening, failures.append)
        if failures:
            self._pool.stop()
            self._pool = None
            failures[0].raiseException()

    def _listening(self, port: Any) -> None:
        self._port = port
        if not self.running:
            port.stopListening()
        self.when_listening.callback(port)

    def execute(self, text: bytes) -> Deferred[bytes]:
        """Run one request's text; fires with the reply's, and never fails for what the client sent."""
        return ensureDeferred(self._execute(text))

    async def _execute(self, text: bytes) -> bytes:
        parts = split_command(text)
        if parts is None:
            self.log.warn("too many arguments")
            return format_reply(-1)
        name, words = parts
        spec = self._commands.get(name)
        if spec is None:
            self._count("?")
            self.log.warn("unsupported command {name!r}", name=name)
            return format_reply(-1)
        self._count(name)
        try:
            arguments = parse_arguments(spec, words)
            reply = await self._run(name, arguments)
        except (BadArgument, OutsideRoot) as error:
            self.log.warn("{name}: {reason!r}", name=name, reason=error)
            # get_app_data_inode and get_app_size always send their text
            reply = {"get_app_data_inode": (-1, "0")}.get(name, -1) if len(words) == len(spec) else -1
        except OSError as error:
            self.log.error("{name}: {reason}", name=name, reason=error.strerror)
            reply = -1
        if isinstance(reply, tuple):
            return format_reply(*reply)
        return format_reply(reply)

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    async def _run(self, name: str, arguments: dict[str, Any]) -> Reply:
        if name == "ping":
            return 0
        key = str(arguments.get("pkgname", ""))
        if not key:
            return await self._work(name, arguments)
        # one package's commands one after the other, whichever client sends them
        lock = self._locks.setdefault(key, DeferredLock())
        await lock.acquire()
        try:
            if not self.running:
                # waited for its turn into the stop: what has not begun does not begin
                raise BadArgument("installd is stopping")
            return await self._work(name, arguments)
        finally:
            lock.release()
            if not lock.locked and not lock.waiting:
                self._locks.pop(key, None)

    async def _work(self, name: str, arguments: dict[str, Any]) -> Reply:
        if name in _TOOL_COMMANDS:
            return await self._external(name, arguments)
        function = getattr(self.operations, name)
        if "uuid" not in arguments and "uuid" in inspect.signature(function).parameters:
            arguments["uuid"] = None  # 5.1 knows no volumes
        reply: Reply = await self._thread(function, **arguments)
        return reply

    def _thread(self, function: Any, *args: Any, **arguments: Any) -> Deferred[Any]:
        if self._pool is None:
            raise BadArgument("installd is stopping")
        return threads.deferToThreadPool(self.reactor, self._pool, function, *args, **arguments)

    # -- external tools ---------------------------------------------------------------------------------

    async def _external(self, name: str, arguments: dict[str, Any]) -> Reply:
        operations = self.operations
        if "pkgname" in arguments:
            operations.package(arguments["pkgname"])
        tool = self._tools.get(_TOOL_COMMANDS[name])
        profiles = name in ("merge_profiles", "dump_profiles")
        if tool is None:
            self.log.warn(
                "{name} is refused: no {tool} tool was given (--tool {tool}=PROGRAM)",
                name=name,
                tool=_TOOL_COMMANDS[name],
            )
            return (0, "false") if profiles else -1
        if profiles:
            return await self._profiles(name, tool, arguments)
        if name == "idmap":
            return await self._idmap(tool, arguments)
        if name == "dexopt":
            try:
                operations.code(arguments["apk_path"])
            except OutsideRoot:
                operations._system(arguments["apk_path"])
        words = ["!" if value is None else str(value) for value in arguments.values()]
        if name == "dexopt" and arguments.get("dexopt_flags", 0) & DEXOPT_OTA:
            words = words[:9]  # otapreopt_chroot never gets the shared libraries
        return 0 if await self._spawn([tool, *words]) == 0 else -1

    async def _idmap(self, tool: str, arguments: dict[str, Any]) -> Reply:
        place = self.operations.idmap_file(arguments["overlay_apk"])
        tree = self.operations.tree

        def make() -> int:
            tree.unlink(place)
            if tree.prepare_file(place, 0o644, 1000, arguments["uid"]):
                raise BadArgument("the map cannot be made")
            with tree.directory(place.parent) as descriptor:
                return os.open(place.name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)

        descriptor = await self._thread(make)
        try:
            argv = [tool, "--fd", arguments["target_apk"], arguments["overlay_apk"], "3"]
            code = await self._spawn(argv, {3: descriptor})
        finally:
            os.close(descriptor)
        if code == 0:
            return 0
        await self._thread(tree.unlink, place)
        return -1

    async def _profiles(self, name: str, tool: str, arguments: dict[str, Any]) -> Reply:
        current, reference = await self._thread(self.operations.profile_files, arguments["pkgname"])
        if not current and (name == "merge_profiles" or not os.path.exists(reference)):
            return 0, "false"
        argv = [
            tool,
            *(f"--profile-file={path}" for path in current),
            f"--reference-profile-file={reference}",
        ]
        if name == "dump_profiles":
            argv += ["--dump-only", *(f"--apk={path}" for path in arguments["code_paths"].split(";"))]
            return 0, "true" if await self._spawn(argv) >= 0 else "false"
        # profman exits with 0 when there is enough news to compile
        return 0, "true" if await self._spawn(argv) == 0 else "false"

    async def _spawn(self, argv: list[str], descriptors: dict[int, int] | None = None) -> int:
        """Run a program to its end; its exit code, or -1 when it was killed or not started."""
        protocol = _Tool()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            process = self.reactor.spawnProcess(
                protocol,
                argv[0],
                argv,
                env=dict(os.environ),
                childFDs={0: null, 1: null, 2: null, **(descriptors or {})},
            )
        except OSError as error:
            self.log.error("{tool} cannot be run: {reason}", tool=argv[0], reason=error)
            return -1
        finally:
            os.close(null)
        self._running_tools.add(process)

        def kill() -> None:
            self.log.error("{tool} did not end in time: killed", tool=argv[0])
            try:
                process.signalProcess(signal.SIGKILL)
            except ProcessExitedAlready:
                pass

        call = self.reactor.callLater(TOOL_TIMEOUT_S, kill)
        try:
            code = await protocol.ended
        finally:
            self._running_tools.discard(process)
            if call.active():
                call.cancel()
        if code:
            self.log.error("{tool} exited with {code}", tool=argv[0], code=code)
        return code

    def stopService(self) -> Deferred[None]:
        """Close everything; fires when connections, tools and threads are gone."""
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        super().stopService()
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        for process in list(self._running_tools):
            try:
                process.signalProcess(signal.SIGKILL)
            except ProcessExitedAlready:
                pass
        for client in list(self.clients):
            client.transport.abortConnection()
            await client.gone
        pool, self._pool = self._pool, None
        if pool is not None:
            # joins its threads: in a thread, so that what they call back can arrive
            await threads.deferToThread(pool.stop)
