"""``FirewallController``: who may talk, by interface, address and uid.

Facts: AOSP ``system/netd/server/FirewallController.cpp`` (android-7.0). Two things are made right here that the
original meant but missed: a chain that is attached in whitelist mode stands before the final drop, and the
rule that lets loopback through matches (the original asks for an in and an out interface at once).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Final

from attrs import Factory, define

from anbox_tw.netd.kernel import is_interface_name
from anbox_tw.netd.nft import Chain, NftTable, Ruleset, match, meta, payload, restoring

__all__ = ["CHILD_CHAINS", "FirewallController"]

Rule = list[dict[str, Any]]

# chain to whether it is a whitelist (FirewallController::getFirewallType)
CHILD_CHAINS: Final = {"dozable": True, "standby": False, "powersave": True}
# FirewallController.cpp: ICMPV6_TYPES
_ICMPV6: Final = [
    "packet-too-big",
    "nd-router-solicit",
    "nd-router-advert",
    "nd-neighbor-solicit",
    "nd-neighbor-advert",
    "nd-redirect",
]
# MAX_SYSTEM_UID: below AID_APP
_MAX_SYSTEM_UID: Final = 9999
_RETURN: Final = {"return": None}
_DROP: Final = {"drop": None}
_REJECT: Final = {"reject": None}
_MAX_UID: Final = 0xFFFFFFFE


@define
class _State:
    enabled: bool = False
    whitelist: bool = False
    dropping: bool = False
    # newest first: the original inserts at the front
    returns_in: list[Rule] = Factory(list)
    returns_out: list[Rule] = Factory(list)
    denied: list[int] = Factory(list)
    uids: dict[str, list[int]] = Factory(lambda: {name: [] for name in CHILD_CHAINS})
    attached: list[str] = Factory(list)


class FirewallController:
    """The firewall's state and its rules in our table. Every method answers whether it worked."""

    def __init__(self, table: NftTable) -> None:
        self._table = table
        self._state = _State()

    @restoring
    async def enable(self, whitelist: bool) -> bool:
        """Choose the mode; changing it forgets all rules but those of the chains.

        The original takes a disabled firewall for one in whitelist mode, and so answers that it worked while it goes
        on to let everything through; here the final drop comes back, behind what was allowed meanwhile.
        """
        state = self._state
        state.enabled = True
        if state.whitelist != whitelist:
            self._flush()
        elif state.dropping == whitelist:
            return True
        state.whitelist = state.dropping = whitelist
        await self._commit()
        return True

    @restoring
    async def disable(self) -> bool:
        """Let everything through; the mode is then whitelist, without its final drop, as in the original."""
        self._flush()
        self._state.enabled = False
        self._state.whitelist = True
        self._state.dropping = False
        await self._commit()
        return True

    @property
    def enabled(self) -> bool:
        """Whether a mode was chosen, and not disabled since."""
        return self._state.enabled

    def _flush(self) -> None:
        self._state.returns_in.clear()
        self._state.returns_out.clear()
        self._state.denied.clear()
        self._state.attached.clear()

    @restoring
    async def set_interface_rule(self, interface: str, allow: bool) -> bool:
        """Let an interface through in whitelist mode."""
        if not self._state.whitelist or not is_interface_name(interface):
            return False
        return await self._returns(
            [match(meta("iifname"), interface), _RETURN], [match(meta("oifname"), interface), _RETURN], allow
        )

    @restoring
    async def set_egress_source(self, address: str, allow: bool) -> bool:
        """Let packets from an address of ours out, and their answers in."""
        protocol, target = _target(address)
        if not self._state.whitelist or protocol is None:
            return False
        return await self._returns(
            [match(payload(protocol, "daddr"), target), _RETURN],
            [match(payload(protocol, "saddr"), target), _RETURN],
            allow,
        )

    @restoring
    async def set_egress_destination(self, address: str, port: int, allow: bool) -> bool:
        """Let packets to a place out, over TCP and UDP, and their answers in."""
        protocol, target = _target(address)
        if not self._state.whitelist or protocol is None or not 0 <= port <= 65535:
            return False
        worked = True
        for transport in ("tcp", "udp"):
            worked &= await self._returns(
                [
                    match(payload(protocol, "saddr"), target),
                    match(payload(transport, "sport"), port),
                    _RETURN,
                ],
                [
                    match(payload(protocol, "daddr"), target),
                    match(payload(transport, "dport"), port),
                    _RETURN,
                ],
                allow,
            )
        return worked

    @restoring
    async def _returns(self, rule_in: Rule, rule_out: Rule, allow: bool) -> bool:
        state = self._state
        if allow:
            state.returns_in.insert(0, rule_in)
            state.returns_out.insert(0, rule_out)
        elif rule_in in state.returns_in:
            state.returns_in.remove(rule_in)
            state.returns_out.remove(rule_out)
        else:
            return False
        await self._commit()
        return True

    @restoring
    async def set_uid_rule(self, chain: str, uid: int, allow: bool) -> bool:
        """Allow or deny a uid in a chain, or in the firewall itself (``none``)."""
        if not 0 <= uid <= _MAX_UID:
            return False
        if chain == "none":
            if self._state.whitelist:
                by_uid = [match(meta("skuid"), uid), _RETURN]
                return await self._returns(by_uid, by_uid, allow)
            return await self._member(self._state.denied, uid, not allow)
        listed = self._state.uids[chain]
        return await self._member(listed, uid, allow if CHILD_CHAINS[chain] else not allow)

    @restoring
    async def _member(self, listed: list[int], uid: int, add: bool) -> bool:
        if add:
            listed.append(uid)
        elif uid in listed:
            listed.remove(uid)
        else:
            return False
        await self._commit()
        return True

    @restoring
    async def replace_uids(self, chain: str, uids: Iterable[int]) -> bool:
        """Give a chain a new list of uids."""
        self._state.uids[chain] = list(uids)
        await self._commit()
        return True

    @restoring
    async def enable_chain(self, chain: str, enable: bool) -> bool:
        """Attach or detach a chain; a word that names none is ignored, as in the original."""
        attached = self._state.attached
        if chain not in CHILD_CHAINS:
            return True
        if enable:
            attached.append(chain)
        elif chain in attached:
            attached.remove(chain)
        else:
            return False
        await self._commit()
        return True

    async def _commit(self) -> None:
        state = self._state

        def edit(rules: Ruleset) -> None:
            for name in [n for n in rules.chains if n.startswith("fw_")]:
                del rules.chains[name]
            for name, white in CHILD_CHAINS.items():
                if state.uids[name] or name in state.attached:
                    rules.chains[f"fw_{name}"] = Chain(rules=_uid_chain(white, state.uids[name]))
            jumps: list[Rule] = [
                [{"jump": {"target": f"fw_{name}"}}] for name in dict.fromkeys(state.attached)
            ]
            denied: list[Rule] = [[match(meta("skuid"), uid), _DROP] for uid in state.denied]
            last = {"fw_input": _DROP, "fw_output": _REJECT, "fw_forward": _REJECT}
            bodies = {
                "fw_input": [*jumps, *state.returns_in, *denied],
                "fw_output": [*jumps, *state.returns_out, *denied],
                "fw_forward": [],
            }
            for name, body in bodies.items():
                if state.dropping:
                    body = [*body, [last[name]]]
                if body:
                    rules.chains[name] = Chain("filter", name.removeprefix("fw_"), 0, body)

        await self._table.change(edit)


def _uid_chain(white: bool, uids: list[int]) -> list[Rule]:
    out: list[Rule] = [
        [match(meta("iifname"), "lo"), _RETURN],
        [match(meta("oifname"), "lo"), _RETURN],
        # so that connections of an app that lost its network end cleanly
        [match({"payload": {"protocol": "tcp", "field": "flags"}}, "rst", op="in"), _RETURN],
    ]
    if white:
        out.append([match(payload("icmpv6", "type"), {"set": list(_ICMPV6)}), _RETURN])
        out.append([match(meta("skuid"), {"range": [0, _MAX_SYSTEM_UID]}), _RETURN])
    verdict = _RETURN if white else _DROP
    out += [[match(meta("skuid"), uid), verdict] for uid in uids]
    if white:
        out.append([_DROP])
    return out


def _target(address: str) -> tuple[str | None, Any]:
    """The family and the nft form of an address or a network; (None, None) when it is neither."""
    try:
        network = ipaddress.ip_network(address, strict=False)
    except ValueError:
        return None, None
    protocol = "ip6" if network.version == 6 else "ip"
    if network.prefixlen == network.max_prefixlen:
        return protocol, str(network.network_address)
    return protocol, {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
