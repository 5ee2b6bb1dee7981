"""``network`` and ``resolver``: networks, their routes, users and name servers."""

from __future__ import annotations

import re
from typing import ClassVar

from anbox_tw.netd.codes import ResponseCode
from anbox_tw.netd.commands._base import Handler, NetdCommand, atoi, failing_with
from anbox_tw.netd.errors import syntax
from anbox_tw.netd.listener import Request
from anbox_tw.netd.networks import NONE, PERMISSIONS, parse_net_id, parse_uid_ranges
from anbox_tw.netd.resolver import ResolverParameters

__all__ = ["NetworkCommand", "ResolverCommand"]


def _unsigned(text: str) -> int | None:
    """C's ``strtoul(text, &end, 0)`` where nothing may be left over."""
    if not re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}", text):
        return None
    if text[:2] in ("0x", "0X"):
        return int(text, 16)
    if text[0] == "0" and len(text) > 1:
        return int(text, 8) if re.fullmatch(r"[0-7]+", text) else None
    return int(text) & 0xFFFFFFFF


class NetworkCommand(NetdCommand):
    """``network route|interface|create|destroy|default|permission|users|protect``."""

    name = "network"
    unknown = "Unknown argument"

    def _done(self, request: Request) -> None:
        request.reply(ResponseCode.OKAY, "success")

    async def _route(self, request: Request, words: list[str]) -> None:
        if not 6 <= len(words) <= 9:
            raise syntax("Incorrect number of arguments")
        rest = words[2:]
        legacy, uid = rest[0] == "legacy", 0
        if legacy:
            uid = _unsigned(rest[1]) or 0
            rest = rest[2:]
        if rest[0] not in ("add", "remove"):
            raise syntax("Unknown argument")
        add = rest[0] == "add"
        if not 4 <= len(rest) <= 5:
            raise syntax("Incorrect number of arguments")
        net_id, interface, destination = parse_net_id(rest[1]), rest[2], rest[3]
        nexthop = rest[4] if len(rest) == 5 else None
        with failing_with("addRoute() failed" if add else "removeRoute() failed"):
            await self.controllers.networks.change_route(
                net_id, interface, destination, nexthop, add=add, legacy=legacy, uid=uid
            )
        self._done(request)

    async def _interface(self, request: Request, words: list[str]) -> None:
        if len(words) != 5:
            raise syntax("Missing argument")
        net_id = parse_net_id(words[3])
        if words[2] == "add":
            with failing_with("addInterfaceToNetwork() failed"):
                await self.controllers.networks.add_interface(net_id, words[4])
        elif words[2] == "remove":
            with failing_with("removeInterfaceFromNetwork() failed"):
                await self.controllers.networks.remove_interface(net_id, words[4])
        else:
            raise syntax("Unknown argument")
        self._done(request)

    async def _create(self, request: Request, words: list[str]) -> None:
        if len(words) < 3:
            raise syntax("Missing argument")
        networks = self.controllers.networks
        net_id = parse_net_id(words[2])
        if len(words) == 6 and words[3] == "vpn":
            with failing_with("createVirtualNetwork() failed"):
                await networks.create_virtual(
                    net_id, has_dns=bool(atoi(words[4])), secure=bool(atoi(words[5]))
                )
        elif len(words) > 4:
            raise syntax("Unknown trailing argument(s)")
        else:
            permission = NONE
            if len(words) == 4:
                if words[3] not in PERMISSIONS:
                    raise syntax("Unknown permission")
                permission = PERMISSIONS[words[3]]
            with failing_with("createPhysicalNetwork() failed"):
                await networks.create_physical(net_id, permission)
        self._done(request)

    async def _destroy(self, request: Request, words: list[str]) -> None:
        if len(words) != 3:
            raise syntax("Incorrect number of arguments")
        net_id = parse_net_id(words[2])
        with failing_with("destroyNetwork() failed"):
            await self.controllers.networks.destroy(net_id)
        self.controllers.resolver.clear(net_id)
        self._done(request)

    async def _default(self, request: Request, words: list[str]) -> None:
        if len(words) < 3:
            raise syntax("Missing argument")
        net_id = 0
        if words[2] == "set":
            if len(words) < 4:
                raise syntax("Missing netId")
            net_id = parse_net_id(words[3])
        elif words[2] != "clear":
            raise syntax("Unknown argument")
        with failing_with("setDefaultNetwork() failed"):
            await self.controllers.networks.set_default(net_id)
        self._done(request)

    async def _permission(self, request: Request, words: list[str]) -> None:
        if len(words) < 5:
            raise syntax("Missing argument")
        permission, ids = NONE, words[4:]
        if words[3] == "set":
            if words[4] not in PERMISSIONS:
                raise syntax("Unknown permission")
            permission, ids = PERMISSIONS[words[4]], words[5:]
        elif words[3] != "clear":
            raise syntax("Unknown argument")
        if not ids:
            raise syntax("Missing id")
        if words[2] == "user":
            uids = [_unsigned(each) for each in ids]
            known = [uid for uid in uids if uid is not None]
            if len(known) != len(uids):
                raise syntax("Invalid id")
            self.controllers.networks.set_user_permission(known, permission)
        elif words[2] == "network":
            with failing_with("setPermissionForNetworks() failed"):
                await self.controllers.networks.set_network_permission(
                    [parse_net_id(each) for each in ids], permission
                )
        else:
            raise syntax("Unknown argument")
        self._done(request)

    async def _users(self, request: Request, words: list[str]) -> None:
        if len(words) < 4:
            raise syntax("Missing argument")
        ranges = parse_uid_ranges(words[4:])
        if ranges is None:
            raise syntax("Invalid UIDs")
        if words[2] not in ("add", "remove"):
            raise syntax("Unknown argument")
        add = words[2] == "add"
        with failing_with("addUsersToNetwork() failed" if add else "removeUsersFromNetwork() failed"):
            await self.controllers.networks.change_users(parse_net_id(words[3]), ranges, add=add)
        self._done(request)

    async def _protect(self, request: Request, words: list[str]) -> None:
        if len(words) < 4:
            raise syntax("Missing argument")
        if words[2] not in ("allow", "deny"):
            raise syntax("Unknown argument")
        uids = [_unsigned(each) or 0 for each in words[3:]]
        self.controllers.networks.set_protect(uids, allow=words[2] == "allow")
        self._done(request)

    subcommands: ClassVar[dict[str, Handler]] = {
        "route": _route,
        "interface": _interface,
        "create": _create,
        "destroy": _destroy,
        "default": _default,
        "permission": _permission,
        "users": _users,
        "protect": _protect,
    }


class ResolverCommand(NetdCommand):
    """``resolver setnetdns|clearnetdns|flushnet``."""

    name = "resolver"
    least = 3
    missing = "Resolver missing arguments"
    unknown = "Resolver unknown command"

    async def _set(self, request: Request, words: list[str]) -> None:
        wrong = "Wrong number of or invalid arguments to resolver setnetdns"
        if len(words) < 5:
            raise syntax(wrong)
        servers, parameters = words[4:], None
        if len(words) > 6 and words[-2] == "--params":
            servers = words[4:-2]
            parameters = ResolverParameters.parse(words[-1])
            if parameters is None:
                raise syntax(wrong)
        if not self.controllers.resolver.configure(
            parse_net_id(words[2]), words[3].split(), servers, parameters
        ):
            raise syntax(wrong)
        request.reply(ResponseCode.OKAY, "Resolver command succeeded")

    async def _clear(self, request: Request, words: list[str]) -> None:
        if len(words) != 3:
            raise syntax("Wrong number of arguments to resolver clearnetdns")
        self.controllers.resolver.clear(parse_net_id(words[2]))
        request.reply(ResponseCode.OKAY, "Resolver command succeeded")

    async def _flush(self, request: Request, words: list[str]) -> None:
        if len(words) != 3:
            raise syntax("Wrong number of arguments to resolver flushnet")
        self.controllers.resolver.flush(parse_net_id(words[2]))
        request.reply(ResponseCode.OKAY, "Resolver command succeeded")

    subcommands: ClassVar[dict[str, Handler]] = {
        "setnetdns": _set,
        "clearnetdns": _clear,
        # Android 5 and 6
        "flushnet": _flush,
    }
