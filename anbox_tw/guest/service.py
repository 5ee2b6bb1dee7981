"""Everything the guest runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from anbox_tw.adb.daemon import AdbDaemon, DaemonConfig
from anbox_tw.guest.adbd import PipeAdbd
from anbox_tw.guest.bridge import GuestBridge
from anbox_tw.guest.control import GuestControl
from anbox_tw.guest.tree import mark_initialized, prepare_tree

__all__ = ["GuestService"]

BOOT_TIMEOUT_S = 5.0
"""A guest without a pipe has booted too, only nobody can reach it by adb."""


class GuestService(Service):
    """The guest: its tree, adbd and the bridge.

    Args:
        reactor: runs it.
        dev: directory of the session's sockets.
        root: the guest's root, ``/`` in a container.
        environment: what applications and shells inherit.

    Attributes:
        daemon: adbd; add services to it.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, dev: str, root: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self._reactor = reactor
        self._root = root
        inherited = dict(os.environ if environment is None else environment)
        android = {
            **inherited,
            "ANDROID_DATA": os.path.join(root, "data"),
            "ANDROID_ROOT": "/system",
            "EXTERNAL_STORAGE": os.path.join(root, "sdcard"),
        }
        self.daemon = AdbDaemon(
            reactor, DaemonConfig(root=None if root == "/" else root, environment=android)
        )
        self.adbd = PipeAdbd(reactor, os.path.join(dev, "qemu_pipe"), self.daemon, self._finish_boot)
        self.bridge = GuestBridge(reactor, os.path.join(dev, "anbox_bridge"), root, android)
        self.control = GuestControl(reactor, os.path.join(dev, "anbox_guest"), self.bridge)
        self._boot_timer: IDelayedCall | None = None
        self._first_boot = False

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
        self._boot_timer = self._reactor.callLater(BOOT_TIMEOUT_S, self._finish_boot)
        self.bridge.startService()
        self.adbd.startService()

    def stopService(self) -> Deferred[None]:
        """Stop in order: what hosts use first, then what tells them about it."""
        if not self.running:
            return succeed(None)
        super().stopService()
        self._end_timer()
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        for part in (self.adbd, self.bridge, self.control):
            await part.stopService()

    def _finish_boot(self) -> None:
        if self._boot_timer is None:
            return
        self._end_timer()
        try:
            mark_initialized(self._root)
        except OSError as error:
            self._log.warn("The boot is not marked, so the next one is a first one too: {error}", error=error)
        self._log.info("Boot is finished, the first one: {first}", first=self._first_boot)
        self.bridge.boot_finished(self._first_boot)

    def _end_timer(self) -> None:
        timer, self._boot_timer = self._boot_timer, None
        if timer is not None and timer.active():
            timer.cancel()
