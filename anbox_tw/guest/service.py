"""Everything the guest runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, succeed
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb.daemon import AdbDaemon, DaemonConfig
from anbox_tw.adb.daemon.control import DeviceControl
from anbox_tw.adb.daemon.jdwp import CONTROL_NAME
from anbox_tw.adb.daemon.logs import LogBuffer
from anbox_tw.errors import AnboxError
from anbox_tw.guest.adbd import PipeAdbd
from anbox_tw.guest.bridge import GuestBridge
from anbox_tw.guest.control import GuestControl
from anbox_tw.guest.properties import BIN, PropertyTable, fetch_boot_properties
from anbox_tw.guest.tree import mark_initialized, prepare_tree
from anbox_tw.guest.under_init import tell_init, under_init

__all__ = ["GuestService"]

BOOT_TIMEOUT_S = 5.0
"""A guest without a pipe has booted too, only nobody can reach it by adb."""

_PRIORITIES = {
    LogLevel.debug: "D",
    LogLevel.info: "I",
    LogLevel.warn: "W",
    LogLevel.error: "E",
    LogLevel.critical: "F",
}


@implementer(ILogObserver)
class _Logcat:
    """What the guest logs is what ``adb logcat`` shows."""

    def __init__(self, buffer: LogBuffer) -> None:
        self._buffer = buffer
        self._writing = False

    def __call__(self, event: LogEvent) -> None:
        # Whoever follows the buffer may log in turn.
        if self._writing:
            return
        self._writing = True
        try:
            tag = str(event.get("log_namespace", "guest")).rpartition(".")[2]
            priority = _PRIORITIES.get(event.get("log_level", LogLevel.info), "I")
            for line in formatEvent(event).splitlines():
                self._buffer.write(line, tag=tag, priority=priority, pid=os.getpid())
        finally:
            self._writing = False


class GuestService(Service):
    """The guest: its tree, properties, adbd and the bridge.

    Args:
        reactor: runs it.
        dev: directory of the session's sockets.
        root: the guest's root, ``/`` in a container.
        environment: what applications and shells inherit.
        on_reboot: called when a host says ``adb reboot``; without it that is refused.

    Attributes:
        daemon: adbd; add services to it.
        properties: what ``getprop`` shows.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        dev: str,
        root: str,
        environment: Mapping[str, str] | None = None,
        *,
        on_reboot: Callable[[], object] | None = None,
    ) -> None:
        self._reactor = reactor
        self._root = root
        self._on_reboot = on_reboot
        self._pipe = os.path.join(dev, "qemu_pipe")
        inherited = dict(os.environ if environment is None else environment)
        path = inherited.get("PATH", os.defpath)
        android = {
            **inherited,
            "PATH": f"{path}:{os.path.join(root, BIN)}",
            "ANDROID_DATA": os.path.join(root, "data"),
            "ANDROID_ROOT": "/system",
            "EXTERNAL_STORAGE": os.path.join(root, "sdcard"),
        }
        self.properties = PropertyTable(root, dev)
        self._logs = LogBuffer()
        self._logcat = _Logcat(self._logs)
        self.daemon = self._make_daemon(android)
        self.adbd = PipeAdbd(reactor, self._pipe, self.daemon, self._finish_boot)
        self.bridge = GuestBridge(reactor, os.path.join(dev, "anbox_bridge"), root, android)
        self.control = GuestControl(reactor, os.path.join(dev, "anbox_guest"), self.bridge)
        self._asking: Deferred[None] | None = None
        self._boot_timer: IDelayedCall | None = None
        self._first_boot = False

    def _make_daemon(self, environment: Mapping[str, str]) -> AdbDaemon:
        def config(jdwp: str | None) -> DaemonConfig:
            return DaemonConfig(
                root=None if self._root == "/" else self._root,
                environment=environment,
                properties=self.properties,
                logs=self._logs,
                packages=os.path.join(self._root, "data/app"),
                control=DeviceControl(reboot=self._reboot if self._on_reboot else None),
                jdwp=jdwp,
            )

        daemon = None
        if self._root == "/":
            try:
                daemon = AdbDaemon(self._reactor, config(CONTROL_NAME))
            except AnboxError as error:
                # Its name belongs to the network namespace, which may be the host's.
                self._log.info("No Java VMs are listed: {error}", error=error)
        daemon = daemon or AdbDaemon(self._reactor, config(None))
        # Where the container's root is one and has Android's users, "adb unroot" works.
        daemon.allow_root_and_unroot()
        return daemon

    def startService(self) -> None:
        """Boot.

        Raises:
            ConfigError: the tree cannot be made.
            NetworkError: the guest's own socket cannot be made.
        """
        if self.running:
            return
        self._first_boot = prepare_tree(self._root)
        self.control.startService()
        super().startService()
        globalLogPublisher.addObserver(self._logcat)
        self._publish_properties()
        self._asking = ensureDeferred(self._ask_for_properties())
        self._asking.addErrback(self._asking_failed)
        self._boot_timer = self._reactor.callLater(BOOT_TIMEOUT_S, self._finish_boot)
        self.bridge.startService()
        self.adbd.startService()

    def stopService(self) -> Deferred[None]:
        """Stop in order: what hosts use first, then what tells them about it."""
        if not self.running:
            return succeed(None)
        super().stopService()
        self._end_timer()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        for part in (self.adbd, self.bridge, self.control):
            await part.stopService()
        globalLogPublisher.removeObserver(self._logcat)

    def _finish_boot(self) -> None:
        if self._boot_timer is None:
            return
        self._end_timer()
        try:
            mark_initialized(self._root)
        except OSError as error:
            self._log.warn("The boot is not marked, so the next one is a first one too: {error}", error=error)
        self._log.info("Boot is finished, the first one: {first}", first=self._first_boot)
        self.properties.update(
            {"sys.boot_completed": "1", "dev.bootcomplete": "1", "init.svc.bootanim": "stopped"}
        )
        self._publish_properties()
        self.bridge.boot_finished(self._first_boot)

    def _end_timer(self) -> None:
        timer, self._boot_timer = self._boot_timer, None
        if timer is not None and timer.active():
            timer.cancel()

    async def _ask_for_properties(self) -> None:
        found = await fetch_boot_properties(self._reactor, self._pipe)
        self.properties.update(found)
        self._publish_properties()

    def _asking_failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError, ConnectingCancelledError):
            self._log.failure("The boot properties could not be read", failure)

    def _publish_properties(self) -> None:
        try:
            self.properties.publish(init=under_init())
        except OSError as error:
            self._log.warn("Shells will find no properties: {error}", error=error)
        if under_init():
            # init's own programs read them there, and it waits for sys.boot_completed with what booting does not need
            told = deferToThread(tell_init, dict(self.properties))
            told.addErrback(lambda failure: self._log.warn("Init is not told: {why}", why=failure.value))

    def _reboot(self, argument: str) -> None:
        assert self._on_reboot is not None
        self._log.info("A host asks for a reboot {argument}", argument=argument)
        # The answer leaves first.
        self._reactor.callLater(0.1, self._on_reboot)
