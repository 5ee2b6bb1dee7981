"""``TetherController``: forwarding, and the DHCP and DNS service for those behind us.

Facts: AOSP ``system/netd/server/TetherController.cpp`` (android-7.0). Android's dnsmasq is patched to take new name
servers and interfaces on its standard input; the one of Linux distributions is not, so ours is started anew when
these change (its leases are kept in a file meanwhile).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from typing import Any, Final

from twisted.logger import Logger

from anbox_tw.netd.children import DaemonChild
from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.forwarding import FORWARD4, FORWARD6
from anbox_tw.netd.kernel import Kernel, is_interface_name

__all__ = ["TetherController"]

MAX_INTERFACES: Final = 64
MAX_REQUESTERS: Final = 256


class TetherController:
    """Forwarding, tethered interfaces, dnsmasq."""

    _log = Logger()

    def __init__(
        self, reactor: Any, kernel: Kernel, *, dry_run: Callable[[str], object] | None = None
    ) -> None:
        """Make the controller.

        Args:
            reactor: starts dnsmasq; a `NamespacedReactor` for another namespace.
            kernel: for sysctls.
            dry_run: called with what would be started.
        """
        self._reactor = reactor
        self._kernel = kernel
        self._dry_run = dry_run
        self._daemon: DaemonChild | None = None
        self._ranges: list[tuple[str, str]] = []
        self._directory: str | None = None
        self._started = False
        self.requesters: set[str] = set()
        self.interfaces: list[str] = []
        self.dns_net_id = 0
        self.dns_servers: list[str] = []

    # -- forwarding

    def forward(self, requester: str, enable: bool) -> None:
        """Ask for forwarding, or take the request back.

        When nobody asks any more it is as it was before we changed it, which the original does not know of.

        Raises:
            OSError: the kernel's switch cannot be written.
        """
        if enable:
            if len(self.requesters) >= MAX_REQUESTERS:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.requesters.add(requester)
        else:
            self.requesters.discard(requester)
        for path in (FORWARD4, FORWARD6):
            if self.requesters:
                self._kernel.sysctls.forward(path)
            else:
                self._kernel.sysctls.stop_forwarding(path)

    # -- tethered interfaces

    def _sysctl(self, family: str, interface: str, name: str, value: str) -> None:
        self._kernel.write_sysctl(f"/proc/sys/net/{family}/conf/{interface}/{name}", value)

    async def add_interface(self, interface: str) -> None:
        """Serve an interface.

        Raises:
            KernelRefused: it is none (ENOENT), or there are too many.
            OSError: it is not there.
        """
        if not is_interface_name(interface):
            raise KernelRefused(errno.ENOENT, f"interface {interface!r}")
        if len(self.interfaces) >= MAX_INTERFACES:
            raise KernelRefused(errno.ENOSPC, "tethered interfaces")
        try:
            # taking IPv6 down and up loses addresses: they are noted, to come back in the end
            await self._kernel.note_interface(interface)
        except KernelRefused as error:
            raise KernelRefused(errno.ENOENT, f"interface {interface}") from error
        for name, value in (
            ("disable_ipv6", "1"),
            ("accept_ra", "0"),
            ("accept_dad", "0"),
            ("dad_transmits", "0"),
            ("disable_ipv6", "0"),
        ):
            self._sysctl("ipv6", interface, name, value)
        self.interfaces.append(interface)
        await self._apply()

    async def remove_interface(self, interface: str) -> None:
        """Serve an interface no more.

        Raises:
            KernelRefused: it was not served (ENOENT).
        """
        if interface not in self.interfaces:
            raise KernelRefused(errno.ENOENT, f"interface {interface!r}")
        self.interfaces.remove(interface)
        for name, value in (
            ("accept_ra", "1"),
            ("accept_dad", "1"),
            ("dad_transmits", "1"),
            ("disable_ipv6", "1"),
        ):
            try:
                self._sysctl("ipv6", interface, name, value)
            except OSError as error:
                self._log.debug("{interface}: {error}", interface=interface, error=error.strerror)
        await self._apply()

    async def set_dns(self, net_id: int, servers: list[str]) -> None:
        """Choose the name servers of those behind us.

        Raises:
            KernelRefused: one is no address (EINVAL); there are none then.
        """
        self.dns_net_id = net_id
        self.dns_servers = []
        found = []
        for server in servers:
            try:
                found.append(str(ipaddress.ip_address(server)))
            except ValueError as error:
                raise KernelRefused(errno.EINVAL, f"name server {server!r}") from error
        self.dns_servers = found
        await self._apply()

    # -- dnsmasq

    @property
    def started(self) -> bool:
        """Whether dnsmasq runs (or would, in a dry run)."""
        return self._started

    async def start(self, addresses: list[str]) -> None:
        """Start dnsmasq.

        Args:
            addresses: first and last address of each DHCP range, in turn.

        Raises:
            KernelRefused: it runs already (EBUSY), is not installed (ENOENT), or does not want to.
        """
        if self._started:
            raise KernelRefused(errno.EBUSY, "tethering")
        ranges = [socket.inet_ntoa(socket.inet_aton(address)) for address in addresses]
        self._ranges = list(zip(ranges[::2], ranges[1::2], strict=True))
        await self._start()
        self._started = True

    def command_line(self) -> list[str]:
        """How dnsmasq is started now."""
        words = [
            "dnsmasq",
            "--keep-in-foreground",
            "--no-resolv",
            "--no-poll",
            "--dhcp-authoritative",
            "--dhcp-option-force=43,ANDROID_METERED",
            "--pid-file=",
            # what a distribution's dnsmasq would take from the host
            "--conf-file=/dev/null",
            "--no-hosts",
            "--bind-dynamic",
            "--except-interface=lo",
            f"--dhcp-leasefile={self._directory}/leases",
            "--user=",
            # a change of group takes away the signal that ends it with us
            "--group=",
        ]
        words += [f"--interface={interface}" for interface in self.interfaces]
        words += [f"--dhcp-range={first},{last},1h" for first, last in self._ranges]
        words += [f"--server={server}" for server in self.dns_servers]
        return words

    async def _start(self) -> None:
        if self._directory is None:
            self._directory = tempfile.mkdtemp(prefix="anbox-netd-")
        words = self.command_line()
        if self._dry_run is not None:
            self._dry_run(" ".join(words))
            return
        daemon = DaemonChild(self._reactor, "dnsmasq", words, on_exit=self._exited)
        try:
            await daemon.start()
        except BaseException:
            self._clean()
            raise
        self._daemon = daemon

    def _exited(self, daemon: DaemonChild) -> None:
        if daemon is self._daemon:
            # it died by itself: it can be started again
            self._daemon = None
            self._started = False

    async def _apply(self) -> None:
        if not self._started:
            return
        if self._daemon is not None:
            daemon, self._daemon = self._daemon, None
            await daemon.stop()
        try:
            await self._start()
        except BaseException:
            self._started = False
            raise

    async def stop(self) -> None:
        """Stop dnsmasq; nothing happens when it does not run."""
        self._started = False
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            await daemon.stop()
        self._clean()

    def _clean(self) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
