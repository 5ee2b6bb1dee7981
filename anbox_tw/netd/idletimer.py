"""``IdletimerController``: who has not been used for a while.

Android's kernels have an xt_IDLETIMER that tells by netlink; ours do not. A set whose elements run out does the
same: a packet on the interface renews its element, a packet that finds none is logged (613 active), and when the
time is up we look whether the element still stands (613 idle).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from attrs import define
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anbox_tw.errors import AnboxError
from anbox_tw.netd._events import Broadcast, IdleTimerEvent, class_activity
from anbox_tw.netd.kernel import is_interface_name
from anbox_tw.netd.manager import LoggedPacket
from anbox_tw.netd.nft import Chain, NftTable, Ruleset, match, meta

__all__ = ["IdletimerController"]

_PREFIX: Final = "idle:"
# xt_idletimer's MAX_IDLETIMER_LABEL_SIZE less the NUL
_LABEL: Final = re.compile(r"[A-Za-z0-9_.-]{1,27}")
MAX_TIMEOUT_S: Final = 0x7FFFFFFF // 1000
MAX_TIMERS: Final = 64
# how long after an element should be gone it is looked for: a tick of the kernel's clock at 250 Hz, and a bit
_LOOK_AGAIN_S: Final = 0.005


@define
class _Timer:
    interface: str
    label: str
    timeout: int
    number: int
    active: bool = True
    call: Any = None


class IdletimerController:
    """The timers and their rules in our table."""

    _log = Logger()

    def __init__(
        self, reactor: Any, table: NftTable, log_group: int, on_event: Callable[[Broadcast], object]
    ) -> None:
        """Make the controller.

        Args:
            reactor: gives the time.
            table: where the rules go.
            log_group: the NFLOG group of the packets that wake a timer.
            on_event: called with each 613.
        """
        self._reactor = reactor
        self._table = table
        self._group = log_group
        self._on_event = on_event
        self._numbers = count(1)
        self._timers: dict[int, _Timer] = {}
        self._looking: set[Deferred[None]] = set()

    async def reset(self) -> None:
        """Forget all timers (``enable`` and ``disable`` both do that)."""
        await self._table.check()
        self.stop()
        await self._table.change(self._edit)

    def stop(self) -> None:
        """Stop the clocks; the rules stay until the table goes."""
        for timer in self._timers.values():
            if timer.call is not None and timer.call.active():
                timer.call.cancel()
        self._timers.clear()
        for looking in list(self._looking):
            looking.cancel()

    async def add(self, interface: str, timeout: int, label: str) -> bool:
        """Watch an interface.

        Args:
            interface: whose packets count, both ways.
            timeout: seconds without one until it is idle.
            label: what is said in 613; the framework wants the number of a network type.

        Returns:
            Whether it can be.
        """
        if (
            not is_interface_name(interface)
            or not _LABEL.fullmatch(label)
            or not 0 < timeout <= MAX_TIMEOUT_S
        ):
            return False
        if self._find(interface, label) is None and len(self._timers) >= MAX_TIMERS:
            return False
        old = self._find(interface, label)
        if old is not None:
            self._forget(old)
        timer = _Timer(interface, label, timeout, next(self._numbers))
        self._timers[timer.number] = timer
        try:
            await self._table.change(self._edit)
        except BaseException:
            self._timers.pop(timer.number, None)
            raise
        self._arm(timer, timeout)
        return True

    def _find(self, interface: str, label: str) -> _Timer | None:
        for timer in self._timers.values():
            if (timer.interface, timer.label) == (interface, label):
                return timer
        return None

    def _forget(self, timer: _Timer) -> None:
        if timer.call is not None and timer.call.active():
            timer.call.cancel()
        self._timers.pop(timer.number, None)

    async def remove(self, interface: str, label: str) -> bool:
        """Stop watching; returns whether it was watched."""
        timer = self._find(interface, label)
        if timer is None:
            return False
        self._forget(timer)
        await self._table.change(self._edit)
        return True

    def _edit(self, rules: Ruleset) -> None:
        for name in ("idle_in", "idle_out"):
            rules.chains.pop(name, None)
        for held_by in [k for k in rules.objects if k[1].startswith("idle_")]:
            del rules.objects[held_by]
        for timer in self._timers.values():
            rules.objects["set", f"idle_{timer.number}"] = {
                "type": "ifname",
                "flags": ["timeout"],
                "timeout": timer.timeout,
            }
        for name, hook, priority, key in (
            ("idle_in", "prerouting", -300, "iifname"),
            ("idle_out", "postrouting", -150, "oifname"),
        ):
            out: list[list[dict[str, Any]]] = []
            for timer in self._timers.values():
                ours, held = match(meta(key), timer.interface), f"@idle_{timer.number}"
                log = {"log": {"group": self._group, "prefix": f"{_PREFIX}{timer.number}"}}
                renew = {"set": {"op": "update", "elem": meta(key), "set": held}}
                out += [[ours, match(meta(key), held, op="!="), log], [ours, renew]]
            if out:
                rules.chains[name] = Chain("filter", hook, priority, out)

    def _arm(self, timer: _Timer, delay: float) -> None:
        timer.call = self._reactor.callLater(delay, self._look, timer)

    def _look(self, timer: _Timer) -> None:
        looking: Deferred[None] = Deferred.fromCoroutine(self._look_now(timer))
        if not looking.called:
            self._looking.add(looking)
        looking.addBoth(lambda _: self._looking.discard(looking))

    async def _look_now(self, timer: _Timer) -> None:
        try:
            left = max(await self._table.seconds_left(f"idle_{timer.number}"), default=None)
        except AnboxError as error:
            self._log.warn("idle timer {label}: {error}", label=timer.label, error=error)
            left = None
        if self._timers.get(timer.number) is not timer:
            return
        if left is not None:
            self._arm(timer, left + _LOOK_AGAIN_S)
            return
        timer.active = False
        self._tell(timer, None)

    def packet(self, packet: LoggedPacket) -> None:
        """A packet that found no element: the interface is in use again."""
        if not packet.prefix.startswith(_PREFIX):
            return
        number = packet.prefix.removeprefix(_PREFIX)
        timer = self._timers.get(int(number)) if number.isascii() and number.isdigit() else None
        if timer is None or timer.active:
            return
        timer.active = True
        self._arm(timer, timer.timeout)
        self._tell(timer, packet.uid)

    def _tell(self, timer: _Timer, uid: int | None) -> None:
        stamp = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._on_event(class_activity(IdleTimerEvent(timer.active, timer.label, stamp, uid)))
