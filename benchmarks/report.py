"""What a run found, as Markdown: tables, the marks it is held against, and the manual's page."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from attrs import frozen

from benchmarks import adb, forwards, rpc
from benchmarks.plot import plot
from benchmarks.relays import MEASURES, Measure, medians

OURS, OUR_REACTOR, HAPROXY = "anbox-tw", "anbox-tw, anbox-epoll", "HAProxy"
COPYING, SPLICING = "C read/write", "C splice"
# gaps under this mean nothing between two relays of one run
NOISE = 0.25


@frozen
class Mark:
    """What a ratio of a run should be.

    Attributes:
        what: in words.
        ratio: of the run; None where something was not measured.
        bound: which it should reach, or stay under.
        more: whether more is better.
    """

    what: str
    ratio: float | None
    bound: float
    more: bool

    @property
    def reached(self) -> bool:
        """Whether the run is good enough."""
        if self.ratio is None:
            return False
        return self.ratio >= self.bound if self.more else self.ratio <= self.bound

    def row(self) -> str:
        """As a line of a table."""
        if self.ratio is None:
            return f"| {self.what} | - | {self.bound:g} | not measured |"
        sign = "at least" if self.more else "at most"
        return (
            f"| {self.what} | {self.ratio:.2f} | {sign} {self.bound:g} |"
            f" {'reached' if self.reached else '**missed**'} |"
        )


def _ratio(results: dict[str, Any] | None, key: str, one: str, other: str) -> float | None:
    try:
        return float(results[one][key]["median"] / results[other][key]["median"])  # type: ignore[index]  # None is a TypeError too
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def _relay_marks(relays: dict[str, Any] | None, name: str, short: str) -> list[Mark]:
    """Those of one of our relays: the strategies are the same on both reactors, the loop around them differs."""
    found = []
    for key, way in (("push", "h→g"), ("pull", "g→h")):
        what = f"{short}: throughput {way} to"
        found.append(Mark(f"{what} HAProxy's, which splices", _ratio(relays, key, name, HAPROXY), 1.2, True))
        for peer in (COPYING, SPLICING):
            found.append(
                Mark(f"{what} {peer}'s (less noise)", _ratio(relays, key, name, peer), 1 - NOISE, True)
            )
        found.append(
            Mark(
                f"{short}: CPU per GiB {way} to HAProxy's",
                _ratio(relays, f"{key}_cpu", name, HAPROXY),
                1.0,
                False,
            )
        )
    found += [
        Mark(
            f"{short}: 1-byte round trip to C read/write's", _ratio(relays, "ping", name, COPYING), 1.1, False
        ),
        Mark(f"{short}: 64 KiB and ack to HAProxy's", _ratio(relays, "ping64k", name, HAPROXY), 1.0, False),
    ]
    for callers, many in ((1, "caller"), (8, "callers")):
        what = f"{short}: new connections, {callers} {many}, to HAProxy's"
        found.append(Mark(what, _ratio(relays, f"calls{callers}", name, HAPROXY), 0.8, True))
    return found


def _added(ways: dict[str, Any] | None, key: str) -> float | None:
    """What the direct forward adds to no forward at all, to what ``adb forward`` adds."""
    try:
        direct, by_adb, bare = (
            ways[name][key]["median"]  # type: ignore[index]  # None is a TypeError too
            for name in (forwards.DIRECT_FORWARD, forwards.ADB_FORWARD, forwards.BARE)
        )
        return float((direct - bare) / (by_adb - bare))
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def marks(document: dict[str, Any]) -> list[Mark]:
    """What the project holds itself to, with this run's figures."""
    relays, calls, ways = document.get("relays"), document.get("rpc"), document.get("forwards")
    found = []
    for name, short in ((OURS, "Twisted's reactor"), (OUR_REACTOR, "anbox-epoll")):
        found += _relay_marks(relays, name, short)
    try:
        idle = relays[OURS]["idle"]["median"]  # type: ignore[index]  # None is a TypeError too
    except (KeyError, TypeError):
        idle = None
    found.append(Mark("kB of an idle stream", idle, 3.0, False))
    direct, by_adb = forwards.DIRECT_FORWARD, forwards.ADB_FORWARD
    found += [
        Mark(
            "direct forward to adb forward: throughput to the guest",
            _ratio(ways, "push", direct, by_adb),
            3.0,
            True,
        ),
        Mark("the same from the guest", _ratio(ways, "pull", direct, by_adb), 3.0, True),
        Mark("the same, 1-byte round trip", _ratio(ways, "ping", direct, by_adb), 0.33, False),
        Mark("the same, death noticed after", _ratio(ways, "notice", direct, by_adb), 0.2, False),
        Mark("the same, less what it takes without a forward", _added(ways, "notice"), 0.2, False),
    ]
    for outstanding, bound in ((1, 6.0), (64, 20.0)):
        key = f"calls_per_s {outstanding}"
        for name, client in (("anbox_tw.rpc", "our client"), (rpc.PLAIN, "a plain socket as client")):
            try:
                ratio = calls["medians"][name][key] / calls["medians"]["grpcio"][key]  # type: ignore[index]  # None is a TypeError too
            except (KeyError, TypeError):
                ratio = None
            what = f"RPC to grpcio: calls per second, {outstanding} outstanding, {client}"
            found.append(Mark(what, ratio, bound, True))
    return [*found, *_adb_marks(document.get("adb"))]


def _adb_marks(results: dict[str, Any] | None) -> list[Mark]:
    """AOSP's adbd under the same client and server was measured elsewhere, on two CPUs: those are figures, not ratios."""
    found = []
    for key, what, bound, more in (
        ("push", "adb 36 on our adbd: push of 1 GiB, MB/s; AOSP's adbd 1100 to 1200", 1100, True),
        ("pull", "the same, pull, MB/s; AOSP's adbd 1000 to 1100", 1000, True),
        ("push_files", "the same, push of 2000 files of 1 KiB, s", 0.15, False),
        ("shell", "the same, shell true, ms", 3.9, False),
    ):
        try:
            value = float(results["contestants"][adb.BASE][key]["median"])  # type: ignore[index]  # None is a TypeError too
        except (KeyError, TypeError):
            continue
        found.append(Mark(what, value, bound, more))
    return found


def marks_table(document: dict[str, Any]) -> str:
    """The marks as Markdown."""
    lines = ["| ratio | this run | mark | |", "|---|---|---|---|", *(mark.row() for mark in marks(document))]
    return "\n".join(lines)


def table(results: dict[str, Any], measures: list[Measure], base: str, title: str = "relay") -> str:
    """Medians, and in brackets the ratio to ``base``, or to the first row where that was not measured."""
    base = base if base in results else next(iter(results))
    shown = [measure for measure in measures if any(measure.key in values for values in results.values())]
    lines = [
        f"| {title} | " + " | ".join(f"{measure.title}, {measure.unit}" for measure in shown) + " |",
        "|" + "---|" * (len(shown) + 1),
    ]
    for name, values in results.items():
        cells = []
        for measure in shown:
            if measure.key not in values:
                cells.append("-")
                continue
            median = values[measure.key]["median"]
            reference = results[base].get(measure.key, {}).get("median")
            ratio = f" ({median / reference:.2f}x)" if reference else ""
            cells.append(f"{median:.3g}{ratio}" if median < 1000 else f"{median:.0f}{ratio}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"x = ratio to {base}."]
    return "\n".join(lines)


def text(document: dict[str, Any]) -> str:
    """All of a run as Markdown."""
    parts = []
    if document.get("relays"):
        parts.append(table(document["relays"], MEASURES, HAPROXY))
    if document.get("forwards"):
        parts.append(table(document["forwards"], forwards.MEASURES, forwards.ADB_FORWARD, "way to a guest"))
    if document.get("rpc"):
        parts.append(rpc.table(document["rpc"]))
    if document.get("adb"):
        parts.append(table(document["adb"]["contestants"], adb.MEASURES, adb.BASE, "all against our adbd"))
        parts.append(adb.split_table(document["adb"]))
    if document.get("soak"):
        one = document["soak"]
        parts.append(
            f"{one['GiB each way']:g} GiB each way at once through {one['relay']} in {one['seconds']} s: sha256 equal at both"
            f" ends, the relay's memory {one['MB before']} MB before and {one['MB at most']} MB at most."
        )
    runs = "; ".join(
        f"{run['part']}: {run['rounds']} rounds at {run['at']}, load {run['load before']} before and {run['load after']} after"
        for run in document["runs"]
    )
    about = ", ".join(f"{key} {value}" for key, value in document["host"].items())
    how = ", ".join(f"{key} {value}" for key, value in document["settings"].items())
    parts.append(f"Medians of interleaved rounds; {how}.\nRuns: {runs}.\nHost: {about}.")
    return "\n\n".join(parts) + "\n"


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """One document of the samples of both: what was run in several goes."""
    both = {**old, **{key: value for key, value in new.items() if value}}
    for part in ("relays", "forwards"):
        if old.get(part) and new.get(part):
            samples: dict[str, dict[str, list[float]]] = {}
            for document in (old, new):
                for name, values in document[part].items():
                    for key, value in values.items():
                        samples.setdefault(name, {}).setdefault(key, []).extend(value["samples"])
            both[part] = medians(samples)
    if old.get("rpc") and new.get("rpc"):
        rounds: dict[str, dict[str, list[float]]] = {}
        for document in (old, new):
            for name, figures in document["rpc"]["rounds"].items():
                for key, samples_of in figures.items():
                    rounds.setdefault(name, {}).setdefault(key, []).extend(samples_of)
        both["rpc"] = {**new["rpc"], "rounds": rounds, "medians": rpc.middle(rounds)}
    both["runs"] = old["runs"] + new["runs"]
    return both


PAGE = """\
# Measurements

Made by `make bench`: do not edit. The load is the same C program for all; the relays stand between a TCP port (h, the host) and a
UNIX socket (g, the guest), each started anew in each of the interleaved rounds. Latency is taken with everything pinned to one
processor. CPU is the relay's own; an idle stream's memory is the relay's private pages, not the kernel's.
`anbox-tw` is the relay on Twisted's epoll reactor, `anbox-epoll` the same on ours, `producer` the strategy for transports that are
no sockets.

## What is reached and what is missed

{marks}

{judgement}

## The figures

{text}
{picture}"""


def judgement(document: dict[str, Any]) -> str:
    """How many marks are reached, and how far the run can be trusted."""
    all_of_them = marks(document)
    reached = sum(mark.reached for mark in all_of_them)
    loads = [float(run[key]) for run in document["runs"] for key in ("load before",)]
    quiet = statistics.median(loads) < 0.5 * float(document["host"]["cpus"])
    return (
        f"{reached} of {len(all_of_them)} marks are reached in this run. The load of the machine before its parts was"
        f" {', '.join(f'{load:g}' for load in loads)}"
        + (
            ": it was quiet."
            if quiet
            else ": others worked on it, so the figures say less about throughput and tails than the ratios of CPU and medians do."
        )
    )


def write_page(document: dict[str, Any]) -> None:
    """The manual's page, with the picture where matplotlib is installed."""
    docs = Path(__file__).parent.parent / "docs"
    caption = ", ".join(
        f"{key} {value}"
        for key, value in document["host"].items()
        if key in ("cpu", "cpus", "kernel", "python")
    )
    drawn = plot(document["relays"], caption, docs / "benchmarks" / "relays")
    picture = (
        "\n![The relays as bars](benchmarks/relays.svg)\n\nAs [PNG](benchmarks/relays.png).\n"
        if drawn
        else ""
    )
    page = PAGE.format(
        marks=marks_table(document), judgement=judgement(document), text=text(document), picture=picture
    )
    (docs / "benchmarks.md").write_text(page)
    print(f"written: {docs}/benchmarks.md", file=sys.stderr)
