"""``StrictController``: telling of, or refusing, what apps send in the clear.

Facts: AOSP ``system/netd/server/StrictController.cpp`` (android-7.0): the first data of a connection is looked at;
TLS and DTLS are let be from then on, anything else is what the uid's policy says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import Factory, define

from anbox_tw.netd._events import Broadcast, strict_cleartext
from anbox_tw.netd.manager import LoggedPacket
from anbox_tw.netd.nft import Chain, NftTable, Ruleset, ct, match, meta, restoring

__all__ = ["PENALTIES", "StrictController"]

PENALTIES: Final = ("accept", "log", "reject")
_PREFIX: Final = "strict"
# ConnmarkFlags.h: what a connection was found to be
_ACCEPTED: Final = 0x01000000
_REFUSED: Final = 0x02000000
# an app that talks in the clear is told of with each connection; this many a second reach the framework
_LOG_LIMIT: Final = {"limit": {"rate": 20, "burst": 40, "per": "second"}}

Rule = list[dict[str, Any]]


@define
class _State:
    enabled: bool = False
    penalties: dict[int, str] = Factory(dict)


def _data(offset: int, bits: int) -> dict[str, Any]:
    """The data behind the transport's header; a packet without that much matches nothing."""
    return {"payload": {"base": "ih", "offset": offset, "len": bits}}


def _mark(bits: int) -> dict[str, Any]:
    return {"mangle": {"key": ct("mark"), "value": {"|": [ct("mark"), bits]}}}


def _has(bits: int) -> dict[str, Any]:
    return match({"&": [ct("mark"), bits]}, bits)


class StrictController:
    """The policies and their rules in our table."""

    def __init__(self, table: NftTable, log_group: int, on_event: Callable[[Broadcast], object]) -> None:
        self._table = table
        self._group = log_group
        self._on_event = on_event
        self._state = _State()

    @restoring
    async def enable(self, enabled: bool) -> bool:
        """Begin with no policies, or take all away."""
        await self._table.check()
        self._state = _State(enabled)
        await self._table.change(self._edit)
        return True

    @restoring
    async def set_penalty(self, uid: int, penalty: str) -> bool:
        """Set a uid's policy: ``accept``, ``log`` or ``reject``."""
        if penalty == "accept":
            self._state.penalties.pop(uid, None)
        else:
            self._state.penalties[uid] = penalty
        await self._table.change(self._edit)
        return True

    def _edit(self, rules: Ruleset) -> None:
        for name in [n for n in rules.chains if n.startswith("st_")]:
            del rules.chains[name]
        if not self._state.penalties:
            return
        log: Rule = [_LOG_LIMIT, {"log": {"group": self._group, "prefix": _PREFIX, "snaplen": 256}}]
        rules.chains["st_log"] = Chain(rules=[log, [_mark(_ACCEPTED)]])
        rules.chains["st_reject"] = Chain(rules=[[_mark(_REFUSED)], log, [{"reject": None}]])
        for penalty in ("log", "reject"):
            caught: Rule = [{"goto": {"target": f"st_{penalty}"}}]
            rules.chains[f"st_clear_{penalty}"] = Chain(
                rules=[
                    [_has(_REFUSED), {"reject": None}],
                    [_has(_ACCEPTED), {"return": None}],
                    [
                        match(meta("l4proto"), "tcp"),
                        match(_data(0, 16), 0x1603),
                        _mark(_ACCEPTED),
                        {"return": None},
                    ],
                    [
                        match(meta("l4proto"), "udp"),
                        match(_data(0, 16), 0x16FE),
                        _mark(_ACCEPTED),
                        {"return": None},
                    ],
                    [match(meta("l4proto"), "tcp"), match(_data(0, 8), 0, op=">="), *caught],
                    [match(meta("l4proto"), "udp"), match(_data(0, 8), 0, op=">="), *caught],
                ]
            )
        rules.chains["st_output"] = Chain(
            "filter",
            "output",
            -2,
            [
                [
                    match(meta("oifname"), "lo", op="!="),
                    match(meta("skuid"), uid),
                    {"jump": {"target": f"st_clear_{how}"}},
                ]
                for uid, how in self._state.penalties.items()
            ],
        )

    def packet(self, packet: LoggedPacket) -> None:
        """A packet in the clear: 617."""
        if packet.prefix == _PREFIX and packet.uid is not None:
            self._on_event(strict_cleartext(packet.uid, packet.payload))
