"""The daemons that netd starts for the framework: pppd, hostapd, clatd.

They run as our children when they are installed; when they are not, the command fails with ENOENT, and 402 for
the access point. Facts: AOSP ``PppController.cpp``, ``SoftapController.cpp``, ``ClatdController.cpp`` (android-7.0).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Final

from anbox_tw.netd.children import DaemonChild
from anbox_tw.netd.codes import ResponseCode
from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.kernel import is_interface_name
from anbox_tw.netd.networks import Fwmark, NetworkController

__all__ = ["ClatdController", "PppController", "SoftapController", "hostapd_configuration", "list_ttys"]

DryRun = Callable[[str], object]

_TTY: Final = re.compile(r"[A-Za-z0-9_]{1,32}")
# SoftapController.h: AP_CHANNEL_DEFAULT
DEFAULT_CHANNEL: Final = 6
# IEEE 802.11: an SSID has up to 32 bytes, a passphrase 8 to 63 printable ones (WPA2, annex M.4)
MAX_SSID_BYTES: Final = 32


def list_ttys(sysfs: str = "/sys/class/tty") -> list[str]:
    """The serial lines that have a device behind them.

    Raises:
        OSError: sysfs is not there.
    """
    return sorted(name for name in os.listdir(sysfs) if os.path.exists(f"{sysfs}/{name}/device"))


class _Children:
    """Daemons by key, each started at most once."""

    def __init__(self, reactor: Any, dry_run: DryRun | None) -> None:
        self._reactor = reactor
        self._dry_run = dry_run
        self._running: dict[str, DaemonChild | None] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._running)

    def __contains__(self, key: str) -> bool:
        return key in self._running

    async def start(self, key: str, words: list[str]) -> None:
        if key in self._running:
            raise KernelRefused(errno.EBUSY, f"{words[0]} for {key}")
        if self._dry_run is not None:
            self._dry_run(" ".join(words))
            self._running[key] = None
            return

        def ended(child: DaemonChild) -> None:
            if self._running.get(key) is child:
                del self._running[key]

        child = DaemonChild(self._reactor, f"{words[0]} for {key}", words, on_exit=ended)
        self._running[key] = child
        try:
            await child.start()
        except BaseException:
            self._running.pop(key, None)
            raise

    async def stop(self, key: str) -> None:
        if key not in self._running:
            raise KernelRefused(errno.ENODEV, f"nothing runs for {key!r}")
        child = self._running.pop(key)
        if child is not None:
            await child.stop()

    async def stop_all(self) -> None:
        for key in list(self._running):
            await self.stop(key)


class PppController:
    """pppd, one for each serial line."""

    def __init__(self, reactor: Any, dry_run: DryRun | None = None) -> None:
        self._children = _Children(reactor, dry_run)

    async def attach(self, tty: str, local: str, remote: str, dns1: str, dns2: str) -> None:
        """Start pppd on a line.

        Raises:
            KernelRefused: no such line (EINVAL for a bad name), it has one already (EBUSY), no pppd (ENOENT).
        """
        if not _TTY.fullmatch(tty):
            raise KernelRefused(errno.EINVAL, f"tty {tty!r}")
        words = ["pppd", "-detach", f"/dev/{tty}", "115200", f"{local}:{remote}"]
        words += ["ms-dns", dns1, "ms-dns", dns2, "lcp-max-configure", "99999"]
        await self._children.start(tty, words)

    async def detach(self, tty: str) -> None:
        """Stop pppd on a line.

        Raises:
            KernelRefused: there is none (ENODEV).
        """
        await self._children.stop(tty)

    async def stop(self) -> None:
        """Stop all."""
        await self._children.stop_all()


def hostapd_configuration(arguments: list[str], control: str) -> str | None:
    """The text of hostapd.conf for ``softap set``.

    Args:
        arguments: the command: ``softap set IF SSID hidden|broadcast CHANNEL SECURITY [PASSPHRASE]``.
        control: directory of hostapd's control socket.

    Returns:
        The text, or None when an argument cannot be used.
    """
    interface, ssid = arguments[2], arguments[3]
    raw = ssid.encode("utf-8", "surrogateescape")
    if not is_interface_name(interface) or not 0 < len(raw) <= MAX_SSID_BYTES or not ssid.isprintable():
        return None
    hidden = len(arguments) > 4 and arguments[4].lower() == "hidden"
    number = re.match(r"\s*(-?[0-9]{1,6})", arguments[5]) if len(arguments) > 5 else None
    channel = int(number[1]) if number else 0
    if channel <= 0:
        channel = DEFAULT_CHANNEL
    lines = [
        f"interface={interface}",
        "driver=nl80211",
        f"ctrl_interface={control}",
        f"ssid={ssid}",
        f"channel={channel}",
        "ieee80211n=1",
        f"hw_mode={'g' if channel <= 14 else 'a'}",
        f"ignore_broadcast_ssid={int(hidden)}",
        "wowlan_triggers=any",
    ]
    security = arguments[6] if len(arguments) > 6 else "open"
    if security in ("wpa-psk", "wpa2-psk") and len(arguments) > 7:
        secret = arguments[7].encode("utf-8", "surrogateescape")
        psk = hashlib.pbkdf2_hmac("sha1", secret, raw, 4096, 32).hex()
        if security == "wpa-psk":
            lines += ["wpa=3", "wpa_pairwise=TKIP CCMP", f"wpa_psk={psk}"]
        else:
            lines += ["wpa=2", "rsn_pairwise=CCMP", f"wpa_psk={psk}"]
    elif security != "open":
        return None
    return "\n".join(lines) + "\n"


class SoftapController:
    """hostapd. Every method answers a response code."""

    def __init__(self, reactor: Any, dry_run: DryRun | None = None, *, directory: str | None = None) -> None:
        """Make the controller.

        Args:
            reactor: starts hostapd.
            dry_run: called with what would be started.
            directory: where hostapd.conf is written; a temporary one when None.
        """
        self._children = _Children(reactor, dry_run)
        self._given = directory
        self._directory: str | None = directory

    @property
    def running(self) -> bool:
        """Whether hostapd runs."""
        return "ap" in self._children

    def _place(self) -> str:
        if self._directory is None:
            self._directory = tempfile.mkdtemp(prefix="anbox-netd-ap-")
        return self._directory

    def configure(self, arguments: list[str]) -> int:
        """``softap set``: write the configuration."""
        if len(arguments) < 4:
            return ResponseCode.SERVICE_START_FAILED
        try:
            place = self._place()
            text = hostapd_configuration(arguments, f"{place}/control")
            if text is None:
                return ResponseCode.PARAMETER_ERROR
            descriptor = os.open(
                f"{place}/hostapd.conf", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600
            )
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        except OSError:
            return ResponseCode.OPERATION_FAILED
        return ResponseCode.SOFTAP_STATUS

    async def start(self) -> int:
        """``softap startap``."""
        if self.running:
            return ResponseCode.SOFTAP_STATUS
        try:
            await self._children.start(
                "ap", ["hostapd", "-e", f"{self._place()}/entropy", f"{self._place()}/hostapd.conf"]
            )
        except KernelRefused:
            return ResponseCode.SERVICE_START_FAILED
        return ResponseCode.SOFTAP_STATUS

    async def stop_ap(self) -> int:
        """``softap stopap``."""
        if self.running:
            await self._children.stop("ap")
        return ResponseCode.SOFTAP_STATUS

    def reload_firmware(self, arguments: list[str]) -> int:
        """``softap fwreload``: there is no firmware of ours to load, so the mode is all that is checked."""
        if len(arguments) < 4:
            return ResponseCode.SYNTAX_ERROR
        return (
            ResponseCode.SOFTAP_STATUS
            if arguments[3] in ("AP", "P2P", "STA")
            else ResponseCode.PARAMETER_ERROR
        )

    async def stop(self) -> None:
        """Stop hostapd and remove what was written."""
        await self._children.stop_all()
        if self._given is None and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


class ClatdController:
    """clatd, one for each interface."""

    def __init__(self, reactor: Any, networks: NetworkController, dry_run: DryRun | None = None) -> None:
        self._children = _Children(reactor, dry_run)
        self._networks = networks

    @property
    def interfaces(self) -> list[str]:
        """Those that it runs for."""
        return list(self._children)

    def running(self, interface: str) -> bool:
        """Whether it runs for an interface."""
        return interface in self._children

    async def start(self, interface: str) -> None:
        """Start it.

        Raises:
            KernelRefused: the interface is of no network (ENODEV), it runs (EBUSY), no clatd (ENOENT).
        """
        if interface in self._children:
            raise KernelRefused(errno.EBUSY, f"clatd for {interface}")
        net_id = self._networks.network_of_interface(interface)
        if not net_id:
            raise KernelRefused(errno.ENODEV, f"interface {interface!r}")
        permission = self._networks.network(net_id).permission
        mark = Fwmark(net_id, True, True, permission).to_int()
        await self._children.start(
            interface, ["clatd", "-i", interface, "-n", f"{net_id:#x}", "-m", f"{mark:#x}"]
        )

    async def stop_one(self, interface: str) -> None:
        """Stop it.

        Raises:
            KernelRefused: it does not run (ENODEV).
        """
        await self._children.stop(interface)

    async def stop(self) -> None:
        """Stop all."""
        await self._children.stop_all()
