"""``NatController``: masquerading between interfaces, and what passes between them.

Facts: AOSP ``system/netd/server/NatController.cpp`` (android-7.0). The original ends its forward chain with a drop
of everything; on a host that forwards for others, too, that would be theirs. Ours drops what comes from or goes to
an inner interface and belongs to no pair.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from attrs import frozen

from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.kernel import is_interface_name
from anbox_tw.netd.nft import Chain, NftTable, Ruleset, ct, match, meta

__all__ = ["NatController", "TetherStats"]

Rule = list[dict[str, Any]]
_ACCEPT: Final = {"accept": None}
# NFPROTO of `meta nfproto`
_V4: Final = {"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv4"}}
_V6: Final = {"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv6"}}
MAX_PAIRS: Final = 256


@frozen
class TetherStats:
    """What has passed between an inner and an outer interface; rx is from the outer to the inner."""

    inner: str
    outer: str
    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int

    def line(self) -> str:
        """As ``bandwidth gettetherstats`` says it."""
        return (
            f"{self.inner} {self.outer} {self.rx_bytes} {self.rx_packets} {self.tx_bytes} {self.tx_packets}"
        )


class NatController:
    """The pairs and their rules in our table."""

    def __init__(self, table: NftTable) -> None:
        self._table = table
        self._pairs: dict[tuple[str, str], int] = {}
        # counters outlive their pair: the framework reads them after it has ended tethering
        self._counted: list[tuple[str, str]] = []

    @property
    def has_counters(self) -> bool:
        """Whether a pair was ever enabled."""
        return bool(self._counted)

    async def enable(self, inner: str, outer: str) -> None:
        """Masquerade what goes from ``inner`` out of ``outer``.

        Raises:
            KernelRefused: with the original's errno.
        """
        if not is_interface_name(inner) or not is_interface_name(outer):
            raise KernelRefused(errno.ENODEV, f"NAT between {inner!r} and {outer!r}")
        if inner == outer:
            raise KernelRefused(errno.EINVAL, f"NAT between {inner} and itself")
        pair = (inner, outer)
        if pair not in self._counted and len(self._counted) >= MAX_PAIRS:
            raise KernelRefused(errno.ENOSPC, f"more than {MAX_PAIRS} pairs of interfaces")
        self._pairs[pair] = self._pairs.get(pair, 0) + 1
        counted = list(self._counted)
        if pair not in self._counted:
            self._counted.append(pair)
        try:
            await self._table.change(self._edit)
        except BaseException:
            self._counted = counted
            self._drop(pair)
            raise

    def _drop(self, pair: tuple[str, str]) -> None:
        self._pairs[pair] -= 1
        if not self._pairs[pair]:
            del self._pairs[pair]

    async def disable(self, inner: str, outer: str) -> None:
        """Undo one `enable`.

        Raises:
            KernelRefused: the pair is not enabled (ENODEV).
        """
        pair = (inner, outer)
        if pair not in self._pairs:
            raise KernelRefused(errno.ENODEV, f"NAT between {inner!r} and {outer!r}")
        before = dict(self._pairs)
        self._drop(pair)
        try:
            await self._table.change(self._edit)
        except BaseException:
            self._pairs = before
            raise

    def _edit(self, rules: Ruleset) -> None:
        for name in ("nat_forward", "nat_postrouting"):
            rules.chains.pop(name, None)
        for inner, outer in self._counted:
            for way in ("rx", "tx"):
                rules.objects.setdefault(("counter", f"{way}_{inner}_{outer}"), {})
        if not self._pairs:
            return
        established = match(ct("state"), {"set": ["established", "related"]}, op="in")
        forward: list[Rule] = []
        for inner, outer in self._pairs:
            back = [match(meta("iifname"), outer), match(meta("oifname"), inner)]
            out = [match(meta("iifname"), inner), match(meta("oifname"), outer)]
            rx, tx = {"counter": f"rx_{inner}_{outer}"}, {"counter": f"tx_{inner}_{outer}"}
            forward += [
                [_V4, *back, established, rx, _ACCEPT],
                [_V4, *out, match(ct("state"), "invalid", op="in"), {"drop": None}],
                [_V4, *out, tx, _ACCEPT],
                # IPv6 is not translated and has no state here
                [_V6, *back, rx, _ACCEPT],
                [_V6, *out, tx, _ACCEPT],
            ]
        inners = list(dict.fromkeys(inner for inner, _ in self._pairs))
        forward += [
            [_V4, match(meta(key), i), {"drop": None}] for i in inners for key in ("iifname", "oifname")
        ]
        outers = list(dict.fromkeys(outer for _, outer in self._pairs))
        rules.chains["nat_forward"] = Chain("filter", "forward", 0, forward)
        rules.chains["nat_postrouting"] = Chain(
            "nat",
            "postrouting",
            100,
            [[_V4, match(meta("oifname"), o), {"masquerade": None}] for o in outers],
        )

    async def stats(self, inner: str = "", outer: str = "") -> list[TetherStats]:
        """The counters of all pairs, or of those that have the given interfaces."""
        counters = await self._table.objects("counter") if self._counted else {}
        found = []
        for pair in self._counted:
            if (inner and pair[0] != inner) or (outer and pair[1] != outer):
                continue
            rx, tx = (counters.get(f"{way}_{pair[0]}_{pair[1]}", {}) for way in ("rx", "tx"))
            found.append(
                TetherStats(
                    *pair, rx.get("bytes", 0), rx.get("packets", 0), tx.get("bytes", 0), tx.get("packets", 0)
                )
            )
        return found
