"""``ipfwd``, ``tether``, ``nat``, ``list_ttys``, ``pppd``, ``softap``, ``clatd``."""

from __future__ import annotations

from typing import ClassVar

from anbox_tw.netd.codes import ResponseCode
from anbox_tw.netd.commands._base import Handler, NetdCommand, failing_with, is_ipv4
from anbox_tw.netd.daemons import list_ttys
from anbox_tw.netd.errors import CommandFailed, failed, parameter, syntax
from anbox_tw.netd.listener import Request
from anbox_tw.netd.networks import parse_net_id

__all__ = [
    "ClatdCommand",
    "IpFwdCommand",
    "ListTtysCommand",
    "NatCommand",
    "PppdCommand",
    "SoftapCommand",
    "TetherCommand",
]


class IpFwdCommand(NetdCommand):
    """``ipfwd status|enable|disable|add|remove``."""

    name = "ipfwd"

    async def run(self, request: Request) -> None:
        words = request.arguments
        tether = self.controllers.tether
        failure = failing_with("ipfwd operation failed")
        match words[1:]:
            case ["status"]:
                state = "enabled" if tether.requesters else "disabled"
                request.reply(ResponseCode.IP_FWD_STATUS, f"Forwarding {state}")
                return
            case ["enable" | "disable" as word]:
                # Android 5.0 and before name no requester
                with failure:
                    tether.forward("", word == "enable")
            case ["enable" | "disable" as word, requester]:
                with failure:
                    tether.forward(requester, word == "enable")
            case ["add" | "remove" as word, inner, outer]:
                with failure:
                    await self.controllers.networks.change_tethering(inner, outer, add=word == "add")
            case _:
                raise syntax("Unknown ipfwd cmd")
        request.reply(ResponseCode.OKAY, "ipfwd operation succeeded")


class TetherCommand(NetdCommand):
    """``tether status|start|stop|interface|dns``."""

    name = "tether"

    async def run(self, request: Request) -> None:
        words = request.arguments
        tether = self.controllers.tether
        if len(words) < 2:
            raise syntax("Missing argument")
        if words[1] == "status":
            state = "started" if tether.started else "stopped"
            request.reply(ResponseCode.TETHER_STATUS, f"Tethering services {state}")
            return
        with failing_with("Tether operation failed"):
            if words[1] == "stop":
                await tether.stop()
            elif len(words) == 3:
                self._lists(request, words)
            elif len(words) < 4:
                raise syntax("Missing argument")
            else:
                await self._change(words)
        request.reply(ResponseCode.OKAY, "Tether operation succeeded")

    def _lists(self, request: Request, words: list[str]) -> None:
        tether = self.controllers.tether
        if words[1:] == ["interface", "list"]:
            for interface in tether.interfaces:
                request.reply(ResponseCode.TETHER_INTERFACE_LIST, interface)
        elif words[1:] == ["dns", "list"]:
            request.reply(ResponseCode.TETHER_DNS_FWD_NET_ID, str(tether.dns_net_id))
            for server in tether.dns_servers:
                request.reply(ResponseCode.TETHER_DNS_FWD_TGT_LIST, server)

    async def _change(self, words: list[str]) -> None:
        tether = self.controllers.tether
        match words[1:]:
            case ["start", *addresses]:
                if len(addresses) % 2:
                    raise syntax("Bad number of arguments")
                if not all(is_ipv4(address) for address in addresses):
                    raise parameter("Invalid address")
                await tether.start(addresses)
            case ["interface", "add", interface, *_]:
                await tether.add_interface(interface)
            case ["interface", "remove", interface, *_]:
                await tether.remove_interface(interface)
            case ["dns", "set", _net_id]:
                raise syntax("Missing argument")
            case ["dns", "set", net_id, *servers]:
                await tether.set_dns(parse_net_id(net_id), servers)
            case ["interface" | "dns", *_]:
                raise parameter("Unknown tether interface operation")
            case _:
                raise syntax("Unknown tether cmd")


class NatCommand(NetdCommand):
    """``nat enable|disable INNER OUTER COUNT [ADDRESS...]``."""

    name = "nat"

    async def run(self, request: Request) -> None:
        words = request.arguments
        if len(words) < 5:
            raise syntax("Missing argument")
        if words[1] not in ("enable", "disable"):
            raise syntax("Unknown nat cmd")
        with failing_with("Nat operation failed"):
            if words[1] == "enable":
                await self.controllers.nat.enable(words[2], words[3])
                await self.controllers.bandwidth.set_tethered_global_alert()
            else:
                await self.controllers.nat.disable(words[2], words[3])
                await self.controllers.bandwidth.remove_tethered_global_alert()
        request.reply(ResponseCode.OKAY, "Nat operation succeeded")


class ListTtysCommand(NetdCommand):
    """``list_ttys``."""

    name = "list_ttys"

    async def run(self, request: Request) -> None:
        try:
            names = list_ttys()
        except OSError:
            names = []
        for name in names:
            request.reply(ResponseCode.TTY_LIST, name)
        request.reply(ResponseCode.OKAY, "Ttys listed.")


class PppdCommand(NetdCommand):
    """``pppd attach|detach``."""

    name = "pppd"
    least = 3
    unknown = "Unknown pppd cmd"

    async def _attach(self, request: Request, words: list[str]) -> None:
        # all are needed; the original reads beyond its arguments when they are not there
        for position, what in ((3, "local"), (4, "remote"), (5, "dns1"), (6, "dns2")):
            if len(words) <= position or not is_ipv4(words[position]):
                raise parameter(f"Invalid {what} address")
        with failing_with("Pppd operation failed"):
            await self.controllers.ppp.attach(*words[2:7])
        request.reply(ResponseCode.OKAY, "Pppd operation succeeded")

    async def _detach(self, request: Request, words: list[str]) -> None:
        with failing_with("Pppd operation failed"):
            await self.controllers.ppp.detach(words[2])
        request.reply(ResponseCode.OKAY, "Pppd operation succeeded")

    subcommands: ClassVar[dict[str, Handler]] = {"attach": _attach, "detach": _detach}


class SoftapCommand(NetdCommand):
    """``softap startap|stopap|status|fwreload|set``."""

    name = "softap"

    async def run(self, request: Request) -> None:
        words = request.arguments
        softap = self.controllers.softap
        if len(words) < 2:
            raise syntax("Missing argument in a SoftAP command")
        match words[1]:
            case "startap":
                code = await softap.start()
            case "stopap":
                code = await softap.stop_ap()
            case "fwreload":
                code = softap.reload_firmware(words)
            case "set":
                code = softap.configure(words)
            case "status":
                state = "is" if softap.running else "is not"
                request.reply(ResponseCode.SOFTAP_STATUS, f"Softap service {state} running")
                return
            case _:
                raise syntax("Unrecognized SoftAP command")
        if 400 <= code < 600:
            raise CommandFailed(code, "SoftAP command has failed")
        request.reply(code, "Ok")


class ClatdCommand(NetdCommand):
    """``clatd start|stop|status``."""

    name = "clatd"

    async def run(self, request: Request) -> None:
        words = request.arguments
        clatd = self.controllers.clatd
        if self.controllers.android < 6 and len(words) == 2 and words[1] in ("stop", "status"):
            # Android 5.0 has one clatd, and does not name its interface
            words = [*words, next(iter(clatd.interfaces), "")]
        if len(words) < 3:
            raise syntax("Missing argument")
        try:
            match words[1]:
                case "start":
                    await clatd.start(words[2])
                case "stop":
                    await clatd.stop_one(words[2])
                case "status":
                    state = "started" if clatd.running(words[2]) else "stopped"
                    request.reply(ResponseCode.CLATD_STATUS, f"Clatd status: {state}")
                    return
                case _:
                    raise syntax("Unknown clatd cmd")
        except CommandFailed:
            raise
        except Exception as error:
            self.controllers.log.warn("clatd: {error}", error=error)
            raise failed("Clatd operation failed") from error
        request.reply(ResponseCode.OKAY, "Clatd operation succeeded")
