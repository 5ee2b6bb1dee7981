"""``BandwidthController``: quotas, alerts, and uids that may not use costly interfaces.

Facts: AOSP ``system/netd/server/BandwidthController.cpp`` (android-7.0). What xt_quota2 did there, named quotas
of nftables do here; the packet that passes one is logged, and becomes a 601 broadcast, once.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, Final

from attrs import Factory, define

from anbox_tw.netd._events import Broadcast, limit_alert
from anbox_tw.netd.kernel import is_interface_name
from anbox_tw.netd.manager import LoggedPacket
from anbox_tw.netd.nft import Chain, NftTable, Ruleset, match, meta, restoring

__all__ = ["GLOBAL_ALERT", "BandwidthController"]

GLOBAL_ALERT: Final = "globalAlert"
SHARED: Final = "shared"
SHARED_ALERT: Final = "sharedAlert"
_PREFIX: Final = "quota:"
# The kernel logs so many packets of one passed quota; we tell of the first, and the rest must not be a flood.
_LOG_LIMIT: Final = {"limit": {"rate": 1, "burst": 1, "per": "second"}}
_MAX_BYTES: Final = 2**63 - 1
_MAX_UID: Final = 0xFFFFFFFE


@define
class _Quota:
    """A quota or an alert.

    Attributes:
        limit: bytes.
        rejects: whether packets beyond it are refused; an alert only tells.
        generation: a new one makes the kernel count from zero.
    """

    limit: int
    rejects: bool
    generation: int


@define
class _State:
    quotas: dict[str, _Quota] = Factory(dict)
    costly: list[str] = Factory(list)
    shared: list[str] = Factory(list)
    naughty: list[int] = Factory(list)
    nice: list[int] = Factory(list)
    tethered_alert: int = 0


class BandwidthController:
    """The state and its rules in our table. Every method answers whether it worked."""

    def __init__(self, table: NftTable, log_group: int, on_event: Callable[[Broadcast], object]) -> None:
        """Make the controller.

        Args:
            table: where the rules go.
            log_group: the NFLOG group of the packets that pass a quota.
            on_event: called with each 601.
        """
        self._table = table
        self._group = log_group
        self._on_event = on_event
        self._generations = count(1)
        self._told: set[tuple[str, int]] = set()
        self._state = _State()

    # -- life

    @restoring
    async def enable(self) -> bool:
        """Start from nothing: no quotas, no alerts, no uids."""
        await self._table.check()
        self._state = _State(tethered_alert=self._state.tethered_alert)
        await self._commit()
        return True

    async def disable(self) -> bool:
        """Take all rules away."""
        return await self.enable()

    # -- quotas

    def _make(self, name: str, limit: int, *, rejects: bool) -> None:
        self._state.quotas[name] = _Quota(limit, rejects, next(self._generations))

    @restoring
    async def set_shared_quota(self, interface: str, limit: int) -> bool:
        """One quota over several interfaces; -1 removes the interface from it."""
        if not is_interface_name(interface) or not limit:
            return False
        if limit == -1:
            return await self.remove_shared_quota(interface)
        if not 0 < limit <= _MAX_BYTES:
            return False
        if interface not in self._state.shared:
            self._state.shared.insert(0, interface)
        now = self._state.quotas.get(SHARED)
        if now is None or now.limit != limit:
            self._make(SHARED, limit, rejects=True)
        await self._commit()
        return True

    @restoring
    async def remove_shared_quota(self, interface: str) -> bool:
        """Take an interface out; the last one takes the quota and its alert along."""
        if interface not in self._state.shared:
            return False
        self._state.shared.remove(interface)
        if not self._state.shared:
            self._state.quotas.pop(SHARED, None)
            self._state.quotas.pop(SHARED_ALERT, None)
        await self._commit()
        return True

    @restoring
    async def set_interface_quota(self, interface: str, limit: int) -> bool:
        """A quota of one interface; -1 removes it. Setting it counts from zero again."""
        if not is_interface_name(interface) or not limit:
            return False
        if limit == -1:
            return await self.remove_interface_quota(interface)
        if not 0 < limit <= _MAX_BYTES:
            return False
        if interface not in self._state.costly:
            self._state.costly.insert(0, interface)
        self._make(f"i:{interface}", limit, rejects=True)
        await self._commit()
        return True

    @restoring
    async def remove_interface_quota(self, interface: str) -> bool:
        """Take an interface's quota and its alert away."""
        if interface not in self._state.costly:
            return False
        self._state.costly.remove(interface)
        self._state.quotas.pop(f"i:{interface}", None)
        self._state.quotas.pop(f"a:{interface}", None)
        await self._commit()
        return True

    async def remaining(self, interface: str | None) -> int | None:
        """Bytes left of an interface's quota, or of the shared one (None); None when there is none."""
        name = SHARED if interface is None else f"i:{interface}"
        if name not in self._state.quotas:
            return None
        found = (await self._table.objects("quota")).get(f"bw_{name}")
        if found is None:
            return self._state.quotas[name].limit
        return max(0, int(found["bytes"]) - int(found.get("used", 0)))

    # -- alerts

    @restoring
    async def set_global_alert(self, limit: int) -> bool:
        """Tell when so many bytes have passed over all interfaces."""
        return await self._set_alert(GLOBAL_ALERT, limit)

    @restoring
    async def remove_global_alert(self) -> bool:
        """Take the global alert away."""
        return await self._remove_alert(GLOBAL_ALERT)

    @restoring
    async def set_tethered_global_alert(self) -> bool:
        """Count forwarded packets for the global alert, too; calls are counted."""
        self._state.tethered_alert += 1
        await self._commit()
        return True

    @restoring
    async def remove_tethered_global_alert(self) -> bool:
        """The opposite of `set_tethered_global_alert`."""
        if not self._state.tethered_alert:
            return False
        self._state.tethered_alert -= 1
        await self._commit()
        return True

    @restoring
    async def set_shared_alert(self, limit: int) -> bool:
        """Tell when so many bytes of the shared quota are used; there must be one."""
        return SHARED in self._state.quotas and await self._set_alert(SHARED_ALERT, limit)

    @restoring
    async def remove_shared_alert(self) -> bool:
        """Take the shared alert away."""
        return await self._remove_alert(SHARED_ALERT)

    @restoring
    async def set_interface_alert(self, interface: str, limit: int) -> bool:
        """Tell when so many bytes of an interface's quota are used; there must be one."""
        return interface in self._state.costly and await self._set_alert(f"a:{interface}", limit)

    @restoring
    async def remove_interface_alert(self, interface: str) -> bool:
        """Take an interface's alert away."""
        return interface in self._state.costly and await self._remove_alert(f"a:{interface}")

    @restoring
    async def _set_alert(self, name: str, limit: int) -> bool:
        if not 0 < limit <= _MAX_BYTES:
            return False
        self._make(name, limit, rejects=False)
        await self._commit()
        return True

    @restoring
    async def _remove_alert(self, name: str) -> bool:
        if self._state.quotas.pop(name, None) is None:
            return False
        await self._commit()
        return True

    # -- uids

    @restoring
    async def change_apps(self, *, naughty: bool, uids: list[int], add: bool) -> bool:
        """Add uids to, or remove them from, those that may not (or always may) use costly interfaces."""
        listed = self._state.naughty if naughty else self._state.nice
        if any(not 0 <= uid <= _MAX_UID for uid in uids):
            return False
        if add:
            listed.extend(uid for uid in uids if uid not in listed)
        elif any(uid not in listed for uid in uids):
            return False
        else:
            for uid in uids:
                listed.remove(uid)
        await self._commit()
        return True

    # -- rules

    async def _commit(self) -> None:
        await self._table.change(self._edit)

    def _over(self, rules: Ruleset, name: str) -> list[dict[str, Any]]:
        """The rule of one quota; makes what it needs."""
        quota = self._state.quotas[name]
        rules.objects["quota", f"bw_{name}"] = {
            "bytes": quota.limit,
            "used": 0,
            "inv": True,
            "_generation": quota.generation,
        }
        tell: list[list[dict[str, Any]]] = [
            [_LOG_LIMIT, {"log": {"group": self._group, "prefix": f"{_PREFIX}{quota.generation}:{name}"}}]
        ]
        if quota.rejects:
            tell.append([{"reject": None}])
        rules.chains[f"bw_over_{name}"] = Chain(rules=tell)
        return [{"quota": f"bw_{name}"}, {"jump": {"target": f"bw_over_{name}"}}]

    def _edit(self, rules: Ruleset) -> None:
        for name in [n for n in rules.chains if n.startswith("bw_")]:
            del rules.chains[name]
        for key in [k for k in rules.objects if k[0] == "quota" and k[1].startswith("bw_")]:
            del rules.objects[key]
        costly = bool(self._state.costly or self._state.shared)
        if costly:
            rules.chains["bw_happy_box"] = Chain(
                rules=[[match(meta("skuid"), u), {"return": None}] for u in self._state.nice]
            )
            box: list[list[dict[str, Any]]] = [
                [match(meta("skuid"), u), {"reject": None}] for u in self._state.naughty
            ]
            rules.chains["bw_penalty_box"] = Chain(rules=[*box, [{"jump": {"target": "bw_happy_box"}}]])
        heads: list[list[dict[str, Any]]] = []
        if GLOBAL_ALERT in self._state.quotas:
            heads.append(self._over(rules, GLOBAL_ALERT))
        bodies: list[tuple[list[str], str]] = []
        for interface in self._state.costly:
            alert = f"a:{interface}"
            names = [alert] if alert in self._state.quotas else []
            body = [self._over(rules, n) for n in [*names, f"i:{interface}"]]
            rules.chains[f"bw_costly_{interface}"] = Chain(
                rules=[[{"jump": {"target": "bw_penalty_box"}}], *body]
            )
            bodies.append(([interface], f"bw_costly_{interface}"))
        if self._state.shared:
            names = [SHARED_ALERT] if SHARED_ALERT in self._state.quotas else []
            body = [self._over(rules, n) for n in [*names, SHARED]]
            rules.chains["bw_costly"] = Chain(rules=[[{"jump": {"target": "bw_penalty_box"}}], *body])
            bodies.append((self._state.shared, "bw_costly"))
        for hook, keys in (
            ("input", ["iifname"]),
            ("output", ["oifname"]),
            ("forward", ["iifname", "oifname"]),
        ):
            out = list(heads) if hook != "forward" or self._state.tethered_alert else []
            out += [
                [match(meta(key), interface), {"jump": {"target": target}}]
                for interfaces, target in bodies
                for interface in interfaces
                for key in keys
            ]
            if out:
                rules.chains[f"bw_{hook}"] = Chain("filter", hook, -1, out)

    # -- what the kernel logs

    def packet(self, packet: LoggedPacket) -> None:
        """A packet that has passed a quota: tell of it, once for each time the quota was set."""
        if not packet.prefix.startswith(_PREFIX):
            return
        generation, _, name = packet.prefix.removeprefix(_PREFIX).partition(":")
        quota = self._state.quotas.get(name)
        if quota is None or str(quota.generation) != generation or (name, quota.generation) in self._told:
            return
        self._told = {
            (n, g) for n, g in self._told if n in self._state.quotas and self._state.quotas[n].generation == g
        }
        self._told.add((name, quota.generation))
        kind, _, interface = name.partition(":")
        told = name if not interface else (f"{interface}Alert" if kind == "a" else interface)
        self._on_event(limit_alert(told, packet.interface))
