"""One nftables table of our own, changed in whole transactions.

What the table should be is kept here; a change makes a new wish, and the difference between the two goes to
``nft -j -f -`` as one transaction: it happens wholly or not at all. Counters and quotas are named objects, so
that rules can be made anew around them without losing what they have counted.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from typing import Any, Final, TypeVar, cast

from attrs import Factory, define
from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from anbox_tw.netd.children import run_tool
from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.kernel_journal import KernelJournal

__all__ = [
    "Chain",
    "NftTable",
    "Ruleset",
    "ct",
    "errno_in",
    "fib",
    "match",
    "meta",
    "parse_expiries",
    "payload",
    "restoring",
]

Json = dict[str, Any]

DEFAULT_TABLE: Final = "anbox_netd"
# rules in one chain: an attacker with the command socket is root's friend anyway, but a runaway framework is not
MAX_RULES: Final = 4096

_EXPIRES: Final = re.compile(r" expires ((?:\d+(?:ms|[dhms]))+)")
_AMOUNT: Final = re.compile(r"(\d+)(ms|[dhms])")
_UNITS_S: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

_ERRNO_BY_TEXT: Final = {os.strerror(number): number for number in errno.errorcode}


def match(left: Any, right: Any, op: str = "==") -> Json:
    """An nft match expression."""
    return {"match": {"op": op, "left": left, "right": right}}


def meta(key: str) -> Json:
    """Packet metadata: ``iifname``, ``skuid``, ``mark``, ..."""
    return {"meta": {"key": key}}


def payload(protocol: str, field: str) -> Json:
    """A header field."""
    return {"payload": {"protocol": protocol, "field": field}}


def ct(key: str) -> Json:
    """Connection tracking: ``state``, ``mark``."""
    return {"ct": {"key": key}}


def fib(result: str, *flags: str) -> Json:
    """A routing lookup."""
    return {"fib": {"result": result, "flags": list(flags)}}


Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


def restoring(method: Method) -> Method:
    """For controllers: when the method raises, ``self._state`` is what it was before.

    What is wished and what the kernel has must not part when a transaction is refused.
    """

    @wraps(method)
    async def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        before = copy.deepcopy(self._state)
        try:
            return await method(self, *args, **options)
        except BaseException:
            self._state = before
            raise

    return cast(Method, wrapped)


@define
class Chain:
    """A chain: a hook, or None for one that is jumped to, and its rules (lists of expressions)."""

    kind: str = "filter"
    hook: str | None = None
    priority: int = 0
    rules: list[list[Json]] = Factory(list)

    def describe(self) -> Json:
        """What ``add chain`` needs beside the names."""
        if self.hook is None:
            return {}
        return {"type": self.kind, "hook": self.hook, "prio": self.priority, "policy": "accept"}


@define
class Ruleset:
    """A whole table.

    Attributes:
        chains: by name, in the order in which they are made: a chain stands after those it jumps to.
        objects: (kind, name) to what describes it: ``("quota", n)``, ``("counter", n)``, ``("set", n)``. A key that
            starts with an underscore is ours alone: changing it makes the object anew.
    """

    chains: dict[str, Chain] = Factory(dict)
    objects: dict[tuple[str, str], Json] = Factory(dict)

    def copy(self) -> Ruleset:
        """An independent copy."""
        return copy.deepcopy(self)

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not self.chains and not self.objects


def _visible(description: Json) -> Json:
    return {key: value for key, value in description.items() if not key.startswith("_")}


def _uses(chain: Chain, kind: str, name: str) -> bool:
    if kind == "set":
        return f'"@{name}"' in json.dumps(chain.rules)
    return any(expression.get(kind) == name for rule in chain.rules for expression in rule)


class NftTable:
    """The table, as it is in the kernel and as it is changed.

    Attributes:
        name: of the table.
        current: what is in the kernel.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        name: str = DEFAULT_TABLE,
        dry_run: Callable[[str], object] | None = None,
        journal: KernelJournal | None = None,
    ) -> None:
        """Make the object; the kernel is not touched before the first change.

        Args:
            reactor: runs ``nft``; a `NamespacedReactor` for another namespace.
            name: of the table, in the family ``inet``.
            dry_run: called with what would be done, which is then not done.
            journal: where it is noted that there is a table.
        """
        self._reactor = reactor
        self.name = name
        self._dry_run = dry_run
        self._journal = journal or KernelJournal()
        self._lock = DeferredLock()
        self._made = False
        self.current = Ruleset()

    async def change(self, edit: Callable[[Ruleset], None]) -> None:
        """Change the table in one transaction.

        Args:
            edit: gets a copy of the wish and changes it; when it raises, nothing happens.

        Raises:
            KernelRefused: the kernel, or nft, did not take it; nothing has changed.
        """
        await self._lock.acquire()
        try:
            wish = self.current.copy()
            edit(wish)
            for name, chain in wish.chains.items():
                if len(chain.rules) > MAX_RULES:
                    raise KernelRefused(errno.ENOSPC, f"chain {name} has more than {MAX_RULES} rules")
            commands = self._difference(self.current, wish)
            if commands:
                await self._apply(commands, wish)
            self.current = wish
        finally:
            self._lock.release()

    async def check(self) -> None:
        """See that the table could be made, and make nothing: what is asked for later is then not refused for a reason
        that is known now (no nftables in the kernel, no right to it).

        Raises:
            KernelRefused: it could not.
        """
        if self._dry_run is not None or self._made:
            return
        text = json.dumps({"nftables": [{"add": {"table": {"family": "inet", "name": self.name}}}]})
        done = await run_tool(self._reactor, ["nft", "-c", "-j", "-f", "-"], stdin=text)
        if done.exit_code != 0:
            raise KernelRefused(errno_in(done.error), "nftables", done.error.strip()[:200])

    async def _apply(self, commands: list[Json], wish: Ruleset) -> None:
        if self._dry_run is None:
            self._journal.note_table(f"inet {self.name}", made=True)
        try:
            await self._transaction(commands)
        except KernelRefused:
            if not await self._gone():
                raise
            await self._make_anew(wish)

    async def _gone(self) -> bool:
        """Whether somebody else has deleted our table, as ``nft flush ruleset`` and firewalls' restarts do."""
        if not self._made or self._dry_run is not None:
            return False
        done = await run_tool(self._reactor, ["nft", "-j", "list", "tables", "inet"])
        return done.exit_code == 0 and not any(
            each.get("table", {}).get("name") == self.name
            for each in json.loads(done.output or "{}").get("nftables", [])
        )

    async def _make_anew(self, wish: Ruleset) -> None:
        self._log.warn("somebody has deleted the nftables table {name}: it is made anew", name=self.name)
        self._made = False
        commands = self._difference(Ruleset(), wish)
        if commands:
            await self._transaction(commands)

    async def _mend(self) -> bool:
        """Make the table anew if somebody has deleted it; returns whether that was done."""
        await self._lock.acquire()
        try:
            if not await self._gone():
                return False
            await self._make_anew(self.current)
            return True
        finally:
            self._lock.release()

    def _difference(self, old: Ruleset, new: Ruleset) -> list[Json]:
        place = {"family": "inet", "table": self.name}
        changed_objects = [k for k, d in old.objects.items() if k in new.objects and new.objects[k] != d]
        gone_objects = [k for k in old.objects if k not in new.objects]
        made_objects = [k for k in new.objects if k not in old.objects or k in changed_objects]
        gone_chains = [
            n
            for n, c in old.chains.items()
            if n not in new.chains or new.chains[n].describe() != c.describe()
        ]
        made_chains = [n for n in new.chains if n not in old.chains or n in gone_chains]
        rewritten = [
            n
            for n, c in new.chains.items()
            if n in made_chains
            or old.chains[n].rules != c.rules
            or any(_uses(old.chains[n], *k) for k in changed_objects)
        ]
        out: list[Json] = []
        if not self._made and not new.empty:
            # what a crashed daemon has left goes first: add makes delete succeed where there is none
            table = {"table": {"family": "inet", "name": self.name}}
            out += [{"add": table}, {"delete": table}, {"add": table}]
        out += [
            {"flush": {"chain": {**place, "name": n}}}
            for n in dict.fromkeys([*gone_chains, *rewritten])
            if n in old.chains
        ]
        out += [{"delete": {"chain": {**place, "name": n}}} for n in reversed(gone_chains)]
        out += [{"delete": {k[0]: {**place, "name": k[1]}}} for k in [*gone_objects, *changed_objects]]
        out += [{"add": {k[0]: {**place, "name": k[1], **_visible(new.objects[k])}}} for k in made_objects]
        out += [{"add": {"chain": {**place, "name": n, **new.chains[n].describe()}}} for n in made_chains]
        out += [
            {"add": {"rule": {**place, "chain": n, "expr": rule}}}
            for n in rewritten
            for rule in new.chains[n].rules
        ]
        return out

    async def _transaction(self, commands: Iterable[Json]) -> None:
        text = json.dumps({"nftables": list(commands)})
        if self._dry_run is not None:
            for command in json.loads(text)["nftables"]:
                self._dry_run("nft " + json.dumps(command))
            self._made = True
            return
        done = await run_tool(self._reactor, ["nft", "-j", "-f", "-"], stdin=text)
        if done.exit_code != 0:
            first = done.error.strip().splitlines()
            said = first[0] if first else f"exit code {done.exit_code}"
            raise KernelRefused(errno_in(said), "an nft transaction", said)
        self._made = True

    async def objects(self, kind: str) -> dict[str, Json]:
        """What the kernel says of the named objects of a kind (``quota``, ``counter``), by name."""
        if not self._made or self._dry_run is not None:
            return {}
        words = (f"{kind}s", "table", "inet", self.name)
        try:
            found = await self._list(*words)
        except KernelRefused:
            if not await self._mend():
                raise
            found = await self._list(*words)
        return {each["name"]: each for each in found if each}

    async def _list(self, what: str, *words: str) -> list[Json]:
        done = await run_tool(self._reactor, ["nft", "-j", "list", what, *words])
        if done.exit_code != 0:
            raise KernelRefused(errno_in(done.error), f"nft list {what}", done.error.strip().splitlines()[0])
        found = json.loads(done.output or "{}").get("nftables", [])
        return [each.get(what.removesuffix("s"), {}) for each in found]

    async def seconds_left(self, name: str) -> list[float]:
        """How long the elements of a set that run out will still be there, in seconds."""
        if not self._made or self._dry_run is not None:
            return []
        # not the JSON, which cuts whole seconds off
        done = await run_tool(self._reactor, ["nft", "list", "set", "inet", self.name, name])
        if done.exit_code != 0:
            if await self._mend():
                return []
            raise KernelRefused(errno_in(done.error), f"nft list set {name}", done.error.strip()[:200])
        return parse_expiries(done.output)

    async def remove(self) -> None:
        """Take the whole table away; nothing happens where there is none."""
        await self._lock.acquire()
        try:
            if self._made:
                table = {"table": {"family": "inet", "name": self.name}}
                await self._transaction([{"add": table}, {"delete": table}])
                self._journal.note_table(f"inet {self.name}", made=False)
            self._made = False
            self.current = Ruleset()
        finally:
            self._lock.release()

    async def remove_leftovers(self) -> None:
        """Take away what a daemon that was killed has left under our name."""
        self._made = True
        await self.remove()


def parse_expiries(text: str) -> list[float]:
    """The seconds that ``nft list set`` says elements have left (``expires 1d1h1m4s696ms``)."""
    return [
        sum(int(number) * _UNITS_S[unit] for number, unit in _AMOUNT.findall(each))
        for each in _EXPIRES.findall(text)
    ]


def errno_in(text: str) -> int:
    """The error number that a message of nft names, or EINVAL."""
    for words, number in _ERRNO_BY_TEXT.items():
        if words in text:
            return number
    return errno.EINVAL
