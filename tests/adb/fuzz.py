"""What the fuzz tests share: how many inputs, and where they come from.

``ANBOX_TW_FUZZ`` is the number of inputs for each codec and each state; a few thousand unless set.
"""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb import _wire as wire
from tests.adb.test_state import INPUTS

__all__ = ["COUNT", "Growth", "Mutator", "packets"]

COUNT = int(os.environ.get("ANBOX_TW_FUZZ", "1000"))
SEED = int(os.environ.get("ANBOX_TW_FUZZ_SEED", "1"))


class Growth:
    """Holds what is kept at the end against what was kept at a tenth of the way."""

    def __init__(self, test: SynchronousTestCase, count: int) -> None:
        self._test = test
        self._at = count // 10
        self._before = (0, 0)

    def look(self, index: int) -> None:
        """Call it after each input."""
        if index == self._at:
            self._before = self._now()

    def check(self) -> None:
        """At the end: no object more, and no page, beyond what an allocator plays with."""
        objects, size = (now - before for now, before in zip(self._now(), self._before, strict=True))
        self._test.assertLess(objects, 2000)
        self._test.assertLess(size, 32 << 20)

    @staticmethod
    def _now() -> tuple[int, int]:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(gc.get_objects()), pages * os.sysconf("SC_PAGE_SIZE")


class Mutator:
    """Seeds in any order with any damage."""

    def __init__(self, seeds: list[bytes]) -> None:
        self.random = random.Random(SEED)
        self.seeds = seeds

    def next(self) -> bytes:
        dice = self.random
        data = bytearray(b"".join(dice.choice(self.seeds) for _ in range(dice.randint(1, 5))))
        for _ in range(dice.choice((0, 0, 1, 1, 2, 8))):
            place = dice.randrange(len(data) or 1)
            kind = dice.randrange(5)
            if kind == 0 and data:
                data[place % len(data)] = dice.randrange(256)
            elif kind == 1:
                del data[place : place + dice.randint(1, 30)]
            elif kind == 2:
                data[place:place] = dice.randbytes(dice.randint(1, 30))
            elif kind == 3:
                data[place : place + 4] = dice.choice((0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 65536)).to_bytes(
                    4, "little"
                )
            else:
                data = data[:place]
        return bytes(data)

    def cut(self, data: bytes) -> list[bytes]:
        """``data`` in pieces, as a network might deliver it."""
        cut = self.random.choice((1 << 20, 24, 7))
        return [data[start : start + cut] for start in range(0, len(data), cut)]


def packets() -> list[bytes]:
    """Every ADB packet with every kind of stream ids and some payloads."""
    found = list(INPUTS.values())
    for command, (one, other) in (
        (c, pair) for c in wire.COMMAND_NAMES for pair in ((1, 1), (7, 1), (1, 7), (0, 1), (7, 0))
    ):
        for payload in (b"", b"x" * 30, bytes(4), b"\0\0\0\x02"):
            found.append(wire.encode_header(command, one, other, len(payload)) + payload)
    return found
