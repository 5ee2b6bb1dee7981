"""The daemon: its services by name, and a transport for each connection."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IProtocol
from twisted.logger import Logger

from anbox_tw.adb._state import Connection, Role
from anbox_tw.adb.daemon import control, shell, sockets
from anbox_tw.adb.daemon.commands import Command, CommandFactory, CommandStream, PropertyCommand, find_command
from anbox_tw.adb.daemon.config import DaemonConfig
from anbox_tw.adb.daemon.files import FileTree, RootedTree
from anbox_tw.adb.daemon.identity import SHELL, Identity, can_change_identity
from anbox_tw.adb.daemon.jdwp import CONTROL_NAME, JdwpHub
from anbox_tw.adb.daemon.logs import LogcatCommand
from anbox_tw.adb.daemon.packages import PackageStore
from anbox_tw.adb.daemon.process import ChildSet
from anbox_tw.adb.daemon.reverse import Reverses
from anbox_tw.adb.daemon.screen import ScreenSource
from anbox_tw.adb.daemon.sync import SyncStream, SyncThreads
from anbox_tw.adb.keys import AdbKey, PublicKey
from anbox_tw.adb.streams import AdbStream
from anbox_tw.adb.transport import AdbTransport, DeviceTransport
from anbox_tw.errors import AdbError

__all__ = ["AdbDaemon", "Service"]

Answer = IProtocol | Deferred[IProtocol | None] | None
Service = Callable[[str, AdbStream], Answer]
"""Serves one stream: gets what follows the service's name and the stream. Answers as ``OpenHandler``."""

STOP_TIMEOUT_S = 10.0
RECONNECT_DELAY_S = 0.05
"""Between the answer to ``reconnect``, ``root`` or ``unroot`` and the end of the connection, so that it arrives."""


async def _take_picture(screen: ScreenSource) -> IProtocol:
    taken = screen()
    return shell.TextStream((await taken if isinstance(taken, Deferred) else taken).encode())


class _NoService(Command):
    """What Android's ``cmd`` says about a service that is not there."""

    def on_start(self) -> None:
        self.err(f"cmd: Can't find service: {self.arguments[0] if self.arguments else ''}\n".encode())
        self.exit(20)


class AdbDaemon:
    """An adbd.

    Args:
        reactor: the reactor.
        config: what it is and may do.

    Attributes:
        config: the settings.
        services: served names; a name ends with ``:`` when an argument follows, or with ``,`` or ``:``
            as ``shell`` does. Add to it to offer more.
        transports: the connections there are now.
    """

    _log = Logger()

    def __init__(self, reactor: Any, config: DaemonConfig | None = None) -> None:
        self.reactor = reactor
        self.config = config or DaemonConfig()
        self.transports: set[DeviceTransport] = set()
        self.children = ChildSet(reactor)
        self.sync_threads = SyncThreads()
        self.tree = RootedTree(self.config.root) if self.config.root else FileTree()
        self.services: dict[str, Service] = {
            "exec": self._exec,
            "sync": self._sync,
            "tcp": self._tcp,
            "dev": self._dev,
            "dev-raw": self._dev_raw,
        }
        for word in ("root", "unroot", "reboot", "remount", "tcpip", "usb"):
            self.services[word] = self._control(word)
        self.services["sink"] = lambda argument, _stream: control.Sink(argument)
        self.services["source"] = lambda argument, _stream: control.Source(argument)
        self.services["reconnect"] = self._reconnect
        self.services["framebuffer"] = self._framebuffer
        self.services["reverse"] = self._reverse
        self.services["abb"] = self._abb(framed=True)
        self.services["abb_exec"] = self._abb(framed=False)
        self.jdwp = JdwpHub(reactor, self.config.jdwp or CONTROL_NAME)
        if self.config.jdwp is not None:
            self.jdwp.start()
        self.services["jdwp"] = self._jdwp
        self.services["track-jdwp"] = lambda _argument, _stream: self.jdwp.track()
        self.services["track-app"] = lambda _argument, _stream: self.jdwp.track_apps()
        self.commands = self._builtin_commands()
        self._reverses: dict[AdbTransport, Reverses] = {}
        for kind in ("local", "localreserved", "localabstract", "localfilesystem"):
            self.services[kind] = self._local(kind)

    def build_transport(self, *, tls_key: AdbKey | None = None) -> DeviceTransport:
        """The protocol for one connection with a host, over whatever byte stream.

        Args:
            tls_key: take this host through TLS with that key of ours, whatever the settings say.
        """
        config = self.config
        connection = Connection(Role.DEVICE, config.banner(), max_payload=config.max_payload)
        transport = DeviceTransport(
            self.reactor,
            connection=connection,
            authority=config.authority,
            tls_key=tls_key or config.tls_key,
            open_handler=self.open_service,
        )
        self.transports.add(transport)
        transport.when_closed().addCallback(lambda _: self.transports.discard(transport))
        return transport

    def open_service(self, name: str, stream: AdbStream) -> Answer:
        """Serve one stream that a host opens.

        Raises:
            AdbError: there is no such service, or it cannot be started.
        """
        word, colon, argument = name.partition(":")
        if word == "shell" or word.startswith("shell,"):
            if not colon:
                raise AdbError("a shell service needs its colon")
            command = self._find_command(argument)
            if command is not None:
                return CommandStream(command, framed="v2" in word.split(","))
            return shell.open_shell(self.reactor, self.children, self.config, word[6:], argument)
        service = self.services.get(word)
        if service is None:
            raise AdbError(f"there is no service {name[:100]!r}")
        return service(argument, stream)

    def _builtin_commands(self) -> dict[str, CommandFactory]:
        config = self.config
        packages = config.packages
        if isinstance(packages, str):
            packages = PackageStore(self.reactor, packages)
        commands: dict[str, CommandFactory] = {
            "getprop": lambda arguments: PropertyCommand(arguments, config.properties),
            "logcat": lambda arguments: LogcatCommand(arguments, config.logs),
        }
        if packages is not None:
            commands["pm"] = packages.command
            commands["cmd"] = lambda arguments: self._cmd(packages, arguments)
        return commands | dict(config.commands)

    def _cmd(self, packages: Any, arguments: Sequence[str]) -> Command:
        if arguments and arguments[0] == "package":
            command: Command = packages.command(arguments[1:])
            return command
        return _NoService(arguments)

    def _find_command(self, line: str) -> Command | None:
        return find_command(self.commands, line, self._path)

    def _path(self) -> str:
        return self.config.shell_environment({})["PATH"]

    def _abb(self, *, framed: bool) -> Service:
        def serve(argument: str, _stream: AdbStream) -> Answer:
            words = argument.split("\0")
            program = shutil.which("cmd", path=self._path())
            if program is not None:
                return shell.open_program(
                    self.reactor, self.children, self.config, [program, *words], framed=framed
                )
            factory = self.commands.get("cmd")
            command = factory(words) if factory is not None else _NoService(words)
            return CommandStream(command, framed=framed)

        return serve

    def _control(self, word: str) -> Service:
        def serve(argument: str, _stream: AdbStream) -> Answer:
            return shell.TextStream(self.config.control.serve(word, argument).encode())

        return serve

    def _framebuffer(self, _argument: str, _stream: AdbStream) -> Answer:
        if self.config.screen is None:
            raise AdbError("there is no screen here")
        return Deferred.fromCoroutine(_take_picture(self.config.screen))

    def _reconnect(self, _argument: str, stream: AdbStream) -> Answer:
        transport = stream.transport
        self.reactor.callLater(RECONNECT_DELAY_S, transport.close, "the host asked to reconnect")
        return shell.TextStream(b"done")

    def _reverse(self, argument: str, stream: AdbStream) -> Answer:
        transport = stream.transport
        reverses = self._reverses.get(transport)
        if reverses is None:
            reverses = self._reverses[transport] = Reverses(self.reactor, transport)
            transport.when_closed().addCallback(lambda _: self._reverses.pop(transport, None))
        return Deferred.fromCoroutine(reverses.serve(argument))

    def _jdwp(self, argument: str, _stream: AdbStream) -> Answer:
        answer: Answer = self.jdwp.attach(argument) if argument else self.jdwp.list_once()
        return answer

    def _exec(self, command: str, _stream: AdbStream) -> Answer:
        builtin = self._find_command(command)
        if builtin is not None:
            return CommandStream(builtin, framed=False)
        return shell.open_exec(self.reactor, self.children, self.config, command)

    def _sync(self, _argument: str, _stream: AdbStream) -> Answer:
        self.sync_threads.begin()
        return SyncStream(self.reactor, self.tree, self.sync_threads, self.config.identity)

    def _tcp(self, argument: str, _stream: AdbStream) -> Answer:
        return sockets.connect_stream(sockets.tcp_endpoint(self.reactor, sockets.parse_tcp_port(argument)))

    def _local(self, kind: str) -> Service:
        def serve(argument: str, _stream: AdbStream) -> Answer:
            address = sockets.parse_local(kind, argument)
            return sockets.connect_stream(sockets.unix_endpoint(self.reactor, address))

        return serve

    def _dev(self, argument: str, _stream: AdbStream) -> Answer:
        return sockets.DeviceFile(self.reactor, argument)

    def _dev_raw(self, argument: str, _stream: AdbStream) -> Answer:
        return sockets.DeviceFile(self.reactor, argument, raw=True)

    def allow_root_and_unroot(self, identity: Identity = SHELL) -> bool:
        """Let hosts change between the user that this process is and ``identity``, as on a debuggable device.

        Returns:
            Whether that can be: this process is root, and has the other user.
        """
        if not can_change_identity(identity):
            return False
        control = self.config.control
        control.is_root = lambda: self.config.identity is None
        control.root = lambda: self._become(None)
        control.unroot = lambda: self._become(identity)
        return True

    def _become(self, identity: Identity | None) -> None:
        self.config.identity = identity
        self.reactor.callLater(RECONNECT_DELAY_S, self._restart)

    def _restart(self) -> None:
        # what a host sees of a real adbd that restarts
        for transport in list(self.transports):
            transport.close("adbd acts as another user now")

    def revoke(self, key: PublicKey) -> None:
        """Forget a key and end the connections that came in with it."""
        self.config.authority.revoke(key)
        for transport in list(self.transports):
            if transport.peer_public_key == key:
                transport.abort("the host's key is not allowed any more")

    def stop(self) -> Deferred[None]:
        """End every connection and child; fires when they are gone."""
        for transport in list(self.transports):
            transport.abort("adbd is stopping")
        self.jdwp.stop()
        waiting = DeferredList([self.children.stop(), self.sync_threads.when_idle()])
        done: Deferred[None] = waiting.addCallback(lambda _: None)

        def gave_up(_result: object, _timeout: float) -> None:
            self._log.warn("some services did not end within {seconds} s", seconds=STOP_TIMEOUT_S)

        return done.addTimeout(STOP_TIMEOUT_S, self.reactor, gave_up)
