"""``bandwidth``, ``idletimer``, ``firewall``, ``strict``: what may pass, and how much of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import ClassVar, Final

from anbox_tw.errors import AnboxError
from anbox_tw.netd.bandwidth import BandwidthController
from anbox_tw.netd.codes import ResponseCode
from anbox_tw.netd.commands._base import Handler, NetdCommand, atoi
from anbox_tw.netd.errors import failed, syntax
from anbox_tw.netd.firewall import CHILD_CHAINS
from anbox_tw.netd.listener import Request
from anbox_tw.netd.strict import PENALTIES

__all__ = ["BandwidthCommand", "FirewallCommand", "IdletimerCommand", "StrictCommand"]

_BANDWIDTH_SHORT: Final = {
    "sq": "setquota",
    "rq": "removequota",
    "sqs": "setquotas",
    "rqs": "removequotas",
    "gq": "getquota",
    "giq": "getiquota",
    "siq": "setiquota",
    "riq": "removeiquota",
    "ana": "addnaughtyapps",
    "rna": "removenaughtyapps",
    "aha": "addniceapps",
    "rha": "removeniceapps",
    "sga": "setglobalalert",
    "rga": "removeglobalalert",
    "dstga": "debugsettetherglobalalert",
    "drtga": "debugremovetetherglobalalert",
    "ssa": "setsharedalert",
    "rsa": "removesharedalert",
    "sia": "setinterfacealert",
    "ria": "removeinterfacealert",
    "gts": "gettetherstats",
}
# arguments: how many exactly (or at least, when negative), and the usage
_BANDWIDTH_USAGE: Final = {
    "setquota": (2, "setquota <interface> <bytes>"),
    "removequota": (1, "removequota <interface>"),
    "setquotas": (-2, "setquotas <bytes> <interface> ..."),
    "removequotas": (-1, "removequotas <interface> ..."),
    "getquota": (0, "getquota"),
    "getiquota": (1, "getiquota <iface>"),
    "setiquota": (2, "setiquota <interface> <bytes>"),
    "removeiquota": (1, "removeiquota <interface>"),
    "addnaughtyapps": (-1, "addnaughtyapps <appUid> ..."),
    "removenaughtyapps": (-1, "removenaughtyapps <appUid> ..."),
    "addniceapps": (-1, "addniceapps <appUid> ..."),
    "removeniceapps": (-1, "removeniceapps <appUid> ..."),
    "setglobalalert": (1, "setglobalalert <bytes>"),
    "removeglobalalert": (0, "removeglobalalert"),
    "debugsettetherglobalalert": (2, "debugsettetherglobalalert <interface0> <interface1>"),
    "debugremovetetherglobalalert": (2, "debugremovetetherglobalalert <interface0> <interface1>"),
    "setsharedalert": (1, "setsharedalert <bytes>"),
    "removesharedalert": (0, "removesharedalert"),
    "setinterfacealert": (2, "setinterfacealert <interface> <bytes>"),
    "removeinterfacealert": (1, "removeinterfacealert <interface>"),
}


class BandwidthCommand(NetdCommand):
    """``bandwidth``: quotas, alerts, apps, tether counters."""

    # The original gives bandwidth a lock of its own, and `nat` changes the alerts under another: two changes of one
    # state could then meet. Here both are under the common lock.
    name = "bandwidth"

    async def run(self, request: Request) -> None:
        words = request.arguments
        if len(words) < 2:
            raise syntax("Usage: bandwidth <cmds> <args...>")
        name = _BANDWIDTH_SHORT.get(words[1], words[1])
        arguments = words[2:]
        if name == "gettetherstats":
            await self._tether_stats(request, arguments)
            return
        if name in _BANDWIDTH_USAGE:
            count, usage = _BANDWIDTH_USAGE[name]
            if len(arguments) != count if count >= 0 else len(arguments) < -count:
                raise syntax(f"Usage: bandwidth {usage}")
        control = self.controllers.bandwidth
        match name, arguments:
            case "getquota", _:
                await self._tell_quota(request, None)
                return
            case "getiquota", [interface]:
                await self._tell_quota(request, interface)
                return
            case "setquotas", [limit, *interfaces]:
                for interface in interfaces:
                    if not await self._try(control.set_shared_quota(interface, atoi(limit))):
                        raise failed(f"bandwidth setquotas {limit} {interface} failed")
                worked = True
            case "removequotas", interfaces:
                for interface in interfaces:
                    if not await self._try(control.remove_shared_quota(interface)):
                        raise failed(f"bandwidth removequotas {interface} failed")
                worked = True
            case _:
                operation = self._operation(control, name, arguments)
                if operation is None:
                    raise syntax("Unknown bandwidth cmd")
                worked = await self._try(operation)
        if not worked:
            raise failed("Bandwidth command failed")
        request.reply(ResponseCode.OKAY, "Bandwidth command succeeeded")

    def _operation(
        self, control: BandwidthController, name: str, arguments: list[str]
    ) -> Awaitable[bool] | None:
        match name, arguments:
            case "enable", _:
                return control.enable()
            case "disable", _:
                return control.disable()
            case "setquota", [interface, limit]:
                return control.set_shared_quota(interface, atoi(limit))
            case "removequota", [interface]:
                return control.remove_shared_quota(interface)
            case "setiquota", [interface, limit]:
                return control.set_interface_quota(interface, atoi(limit))
            case "removeiquota", [interface]:
                return control.remove_interface_quota(interface)
            case "addnaughtyapps" | "removenaughtyapps" | "addniceapps" | "removeniceapps", uids:
                return control.change_apps(
                    naughty="naughty" in name, uids=[atoi(uid) for uid in uids], add=name.startswith("add")
                )
            case "setglobalalert", [limit]:
                return control.set_global_alert(atoi(limit))
            case "removeglobalalert", _:
                return control.remove_global_alert()
            case "debugsettetherglobalalert", _:
                return control.set_tethered_global_alert()
            case "debugremovetetherglobalalert", _:
                return control.remove_tethered_global_alert()
            case "setsharedalert", [limit]:
                return control.set_shared_alert(atoi(limit))
            case "removesharedalert", _:
                return control.remove_shared_alert()
            case "setinterfacealert", [interface, limit]:
                return control.set_interface_alert(interface, atoi(limit))
            case "removeinterfacealert", [interface]:
                return control.remove_interface_alert(interface)
        return None

    async def _try(self, operation: Awaitable[bool]) -> bool:
        try:
            return await operation
        except AnboxError as error:
            self.controllers.log.warn("bandwidth: {error}", error=error)
            return False

    async def _tell_quota(self, request: Request, interface: str | None) -> None:
        try:
            left = await self.controllers.bandwidth.remaining(interface)
        except AnboxError as error:
            self.controllers.log.warn("bandwidth: {error}", error=error)
            left = None
        if left is None:
            raise failed("Failed to get quota")
        request.reply(ResponseCode.QUOTA_COUNTER, str(left))

    async def _tether_stats(self, request: Request, arguments: list[str]) -> None:
        if len(arguments) > 2:
            raise syntax("Usage: bandwidth gettetherstats [<intInterface> <extInterface>]")
        nat = self.controllers.nat
        done = "Tethering stats list completed"
        if not arguments and not nat.has_counters:
            request.reply(ResponseCode.OKAY, done)
            return
        try:
            found = await nat.stats(*arguments)
        except AnboxError as error:
            raise failed(f"Failed to get tethering stats.\n{error}") from error
        if len(arguments) == 2 and all(arguments):
            if not found:
                raise failed("Failed to get tethering stats.\n")
            request.reply(ResponseCode.TETHERING_STATS, found[0].line())
            return
        for each in found:
            request.reply(ResponseCode.TETHERING_STATS_LIST, each.line())
        request.reply(ResponseCode.OKAY, done)


class IdletimerCommand(NetdCommand):
    """``idletimer enable|disable|add|remove``."""

    name = "idletimer"
    unknown = "Unknown idletimer cmd"

    async def _reset(self, request: Request, words: list[str]) -> None:
        try:
            await self.controllers.idletimer.reset()
        except AnboxError as error:
            # the original says just this
            raise syntax("Missing argument") from error
        request.reply(ResponseCode.OKAY, f"{words[1].capitalize()} success")

    async def _change(self, request: Request, words: list[str]) -> None:
        if len(words) != 5:
            raise syntax("Missing argument")
        timers = self.controllers.idletimer
        try:
            if words[1] == "add":
                worked = await timers.add(words[2], atoi(words[3], 32), words[4])
            else:
                worked = await timers.remove(words[2], words[4])
        except AnboxError as error:
            self.controllers.log.warn("idletimer: {error}", error=error)
            worked = False
        if not worked:
            raise failed(f"Failed to {words[1]} interface")
        request.reply(ResponseCode.OKAY, f"{words[1].capitalize()} success")

    subcommands: ClassVar[dict[str, Handler]] = {
        "enable": _reset,
        "disable": _reset,
        "add": _change,
        "remove": _change,
    }


class FirewallCommand(NetdCommand):
    """``firewall``: modes, rules by interface, address and uid, chains."""

    name = "firewall"
    lock_name = "firewall"
    missing = "Missing command"
    unknown = "Unknown command"

    async def _answer(self, request: Request, operation: Awaitable[bool]) -> None:
        try:
            worked = await operation
        except AnboxError as error:
            self.controllers.log.warn("firewall: {error}", error=error)
            worked = False
        if not worked:
            raise failed("Firewall command failed")
        request.reply(ResponseCode.OKAY, "Firewall command succeeded")

    def _count(self, words: list[str], count: int, usage: str) -> None:
        if len(words) != count:
            raise syntax(f"Usage: firewall {usage}")

    async def _enable(self, request: Request, words: list[str]) -> None:
        if self.controllers.android < 6 and len(words) == 2:
            # Android 5.0 has the one kind
            words = [*words, "whitelist"]
        self._count(words, 3, "enable <whitelist|blacklist>")
        await self._answer(request, self.controllers.firewall.enable(words[2] == "whitelist"))

    async def _disable(self, request: Request, words: list[str]) -> None:
        await self._answer(request, self.controllers.firewall.disable())

    async def _is_enabled(self, request: Request, words: list[str]) -> None:
        # the answer is taken for an error number: 200 means disabled. (AOSP's never looks, and says -1, 400, always.)
        if self.controllers.firewall.enabled:
            raise failed("Firewall command failed")
        request.reply(ResponseCode.OKAY, "Firewall command succeeded")

    async def _interface(self, request: Request, words: list[str]) -> None:
        self._count(words, 4, "set_interface_rule <rmnet0> <allow|deny>")
        await self._answer(
            request, self.controllers.firewall.set_interface_rule(words[2], words[3] != "deny")
        )

    async def _source(self, request: Request, words: list[str]) -> None:
        self._count(words, 4, "set_egress_source_rule <192.168.0.1> <allow|deny>")
        await self._answer(request, self.controllers.firewall.set_egress_source(words[2], words[3] != "deny"))

    async def _destination(self, request: Request, words: list[str]) -> None:
        self._count(words, 5, "set_egress_dest_rule <192.168.0.1> <80> <allow|deny>")
        allow = words[4] != "deny"
        await self._answer(
            request, self.controllers.firewall.set_egress_destination(words[2], atoi(words[3], 32), allow)
        )

    async def _uid(self, request: Request, words: list[str]) -> None:
        if len(words) == 4:
            # Android 5.0: no chain
            words = [*words[:2], "none", *words[2:]]
        self._count(words, 5, "set_uid_rule <dozable|standby|none> <1000> <allow|deny>")
        if words[2] not in (*CHILD_CHAINS, "none"):
            raise syntax("Invalid chain name. Valid names are: <dozable|standby|none>")
        uid = atoi(words[3], 32)
        await self._answer(request, self.controllers.firewall.set_uid_rule(words[2], uid, words[4] != "deny"))

    async def _chain(self, request: Request, words: list[str]) -> None:
        self._count(words, 3, f"{words[1]} <dozable|standby>")
        enable = words[1] == "enable_chain"
        await self._answer(request, self.controllers.firewall.enable_chain(words[2], enable))

    subcommands: ClassVar[dict[str, Handler]] = {
        "enable": _enable,
        "disable": _disable,
        "is_enabled": _is_enabled,
        "set_interface_rule": _interface,
        "set_egress_source_rule": _source,
        "set_egress_dest_rule": _destination,
        "set_uid_rule": _uid,
        "enable_chain": _chain,
        "disable_chain": _chain,
    }


class StrictCommand(NetdCommand):
    """``strict enable|disable|set_uid_cleartext_policy``."""

    name = "strict"
    missing = "Missing command"
    unknown = "Unknown command"

    async def _answer(self, request: Request, operation: Awaitable[bool]) -> None:
        try:
            await operation
        except AnboxError as error:
            self.controllers.log.warn("strict: {error}", error=error)
            raise failed("Strict command failed") from error
        request.reply(ResponseCode.OKAY, "Strict command succeeded")

    async def _switch(self, request: Request, words: list[str]) -> None:
        await self._answer(request, self.controllers.strict.enable(words[1] == "enable"))

    async def _policy(self, request: Request, words: list[str]) -> None:
        if len(words) != 4:
            raise syntax("Usage: strict set_uid_cleartext_policy <uid> <accept|log|reject>")
        if not re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}", words[2]):
            raise syntax("Invalid UID")
        uid = int(words[2], 16 if words[2][:2] in ("0x", "0X") else 10)
        if uid > 0xFFFFFFFE:
            raise syntax("Invalid UID")
        if words[3] not in PENALTIES:
            raise syntax("Invalid penalty argument")
        await self._answer(request, self.controllers.strict.set_penalty(uid, words[3]))

    subcommands: ClassVar[dict[str, Handler]] = {
        "enable": _switch,
        "disable": _switch,
        "set_uid_cleartext_policy": _policy,
    }
