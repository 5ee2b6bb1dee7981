"""``interface``: addresses, flags, MTU, IPv6 switches."""

from __future__ import annotations

import errno
import socket
from typing import ClassVar

from anbox_tw.netd._kernel_model import (
    IFF_BROADCAST,
    IFF_LOOPBACK,
    IFF_MULTICAST,
    IFF_POINTOPOINT,
    IFF_RUNNING,
    is_interface_name,
)
from anbox_tw.netd.codes import ResponseCode
from anbox_tw.netd.commands._base import Handler, NetdCommand, atoi, failing_with, is_ipv4
from anbox_tw.netd.errors import KernelRefused, failed, parameter, syntax
from anbox_tw.netd.listener import Request

__all__ = ["InterfaceCommand"]

_IGNORED = ("broadcast", "multicast", "running", "loopback", "point-to-point")


class InterfaceCommand(NetdCommand):
    """``interface list|getcfg|setcfg|clearaddrs|ipv6privacyextensions|ipv6|ipv6ndoffload|setmtu|getmtu``."""

    name = "interface"
    unknown = "Unknown interface cmd"

    async def run(self, request: Request) -> None:
        words = request.arguments
        if len(words) == 2 and words[1] != "list":
            # as the original: everything but the list needs an interface
            raise syntax(self.missing)
        await super().run(request)

    async def _list(self, request: Request, words: list[str]) -> None:
        with failing_with("Failed to open sysfs dir"):
            links = await self.controllers.kernel.links()
        for link in links:
            if not link.name.startswith("."):
                request.reply(ResponseCode.INTERFACE_LIST, link.name)
        request.reply(ResponseCode.OKAY, "Interface list completed")

    async def _getcfg(self, request: Request, words: list[str]) -> None:
        kernel = self.controllers.kernel
        with failing_with("Interface not found"):
            link = await kernel.link(words[2])
            v4 = [a for a in await kernel.addresses(link.index) if a.family == socket.AF_INET]
        flags = ["up" if link.up else "down"]
        for bit, word in (
            (IFF_BROADCAST, "broadcast"),
            (IFF_LOOPBACK, "loopback"),
            (IFF_POINTOPOINT, "point-to-point"),
            (IFF_RUNNING, "running"),
            (IFF_MULTICAST, "multicast"),
        ):
            if link.flags & bit:
                flags.append(word)
        mac = link.mac.lower() if len(link.mac) == 17 else "00:00:00:00:00:00"
        address, prefix = (
            (v4[0].local, v4[0].prefix) if v4 else ("0.0.0.0", 0)
        )  # what the reply says when there is none
        request.reply(ResponseCode.INTERFACE_GET_CFG, f"{mac} {address} {prefix} {' '.join(flags)}")

    async def _setcfg(self, request: Request, words: list[str]) -> None:
        kernel = self.controllers.kernel
        if len(words) < 4:
            raise syntax("Missing argument")
        name, first = words[2], 3
        if is_ipv4(words[3]):
            if len(words) < 5:
                # the original reads beyond its arguments here
                raise syntax("Missing argument")
            first = 5
            with failing_with("Failed to clear address"):
                link = await kernel.link(name)
                for address in await kernel.addresses(link.index):
                    if address.family == socket.AF_INET:
                        # SIOCSIFADDR with 0 takes the first one away; with it go those of its subnet
                        await kernel.delete_address(name, address)
                        break
            wanted = socket.inet_ntoa(socket.inet_aton(words[3]))
            if socket.inet_aton(words[3]) != bytes(4):
                with failing_with("Failed to set address"):
                    await kernel.add_address(name, wanted, atoi(words[4], 32))
        for flag in words[first:]:
            if flag in ("up", "down"):
                with failing_with(f"Failed to {flag} interface"):
                    await kernel.set_up(name, flag == "up")
            elif flag not in _IGNORED:
                raise parameter("Flag unsupported")
        request.reply(ResponseCode.OKAY, "Interface configuration set")

    async def _clearaddrs(self, request: Request, words: list[str]) -> None:
        kernel = self.controllers.kernel
        try:
            link = await kernel.link(words[2])
            for address in await kernel.addresses(link.index):
                await kernel.delete_address(words[2], address)
        except KernelRefused as error:
            # the original does not look whether it worked
            self._log_quietly(error)
        request.reply(ResponseCode.OKAY, "Interface IP addresses cleared")

    def _log_quietly(self, error: KernelRefused) -> None:
        self.controllers.log.debug("clearaddrs: {error}", error=error)

    def _switch(self, words: list[str]) -> str:
        if len(words) != 4:
            raise syntax(f"Usage: interface {words[1]} <interface> <enable|disable>")
        return words[3]

    async def _write(self, interface: str, name: str, value: str) -> None:
        if not is_interface_name(interface):
            raise KernelRefused(errno.ENOENT, f"interface {interface!r}")
        try:
            await self.controllers.kernel.note_interface(interface)
        except KernelRefused as error:
            raise KernelRefused(
                errno.ENOENT if error.errno == errno.ENODEV else error.errno, interface
            ) from error
        self.controllers.kernel.write_sysctl(f"/proc/sys/net/ipv6/conf/{interface}/{name}", value)

    async def _privacy(self, request: Request, words: list[str]) -> None:
        enable = self._switch(words) == "enable"
        with failing_with("Failed to set ipv6 privacy extensions"):
            # 2: temporary addresses are preferred
            await self._write(words[2], "use_tempaddr", "2" if enable else "0")
        request.reply(ResponseCode.OKAY, "IPv6 privacy extensions changed")

    async def _ipv6(self, request: Request, words: list[str]) -> None:
        enable = self._switch(words) == "enable"
        with failing_with("Failed to change IPv6 state"):
            await self._write(words[2], "disable_ipv6", "0" if enable else "1")
        request.reply(ResponseCode.OKAY, "IPv6 state changed")

    async def _nd_offload(self, request: Request, words: list[str]) -> None:
        self._switch(words)
        # InterfaceController: only Broadcom's wlutil does anything, and without it this succeeds
        request.reply(ResponseCode.OKAY, "IPv6 ND offload changed")

    async def _setmtu(self, request: Request, words: list[str]) -> None:
        if len(words) != 4:
            raise syntax("Usage: interface setmtu <interface> <val>")
        text = "Failed to set MTU"
        if not is_interface_name(words[2]):
            raise failed(text, errno.ENOENT)
        if not words[3].isascii() or not words[3].isdigit() or len(words[3]) > 9:
            raise failed(text, errno.EINVAL)
        try:
            await self.controllers.kernel.set_mtu(words[2], int(words[3]))
        except KernelRefused as error:
            # the original writes a file in sysfs, which is not there for no interface
            raise failed(text, errno.ENOENT if error.errno == errno.ENODEV else error.errno) from error
        request.reply(ResponseCode.OKAY, "MTU changed")

    async def _getmtu(self, request: Request, words: list[str]) -> None:
        with failing_with("Failed to get MTU"):
            link = await self.controllers.kernel.link(words[2])
        request.reply(ResponseCode.INTERFACE_GET_MTU, f"MTU = {link.mtu}")

    subcommands: ClassVar[dict[str, Handler]] = {
        "list": _list,
        "getcfg": _getcfg,
        "setcfg": _setcfg,
        "clearaddrs": _clearaddrs,
        "ipv6privacyextensions": _privacy,
        "ipv6": _ipv6,
        "ipv6ndoffload": _nd_offload,
        "setmtu": _setmtu,
        # Android 4.4
        "getmtu": _getmtu,
    }
