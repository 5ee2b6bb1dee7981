"""The measurements run, and their table says what was measured."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.__main__ import table
from tests.support import REPOSITORY, need_tool


class BenchTests(SynchronousTestCase):
    def test_one_figure_of_two_relays(self) -> None:
        need_tool("gcc")
        command = [sys.executable, "-m", "benchmarks", "--quick", "--no-save", "--measure", "notice"]
        command += ["--only", "anbox-tw", "--only", "C read/write", "--only", "no relay"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
        self.assertIn("| relay | death noticed after, ms |", done.stdout)
        for name in ("anbox-tw", "C read/write", "no relay"):
            self.assertRegex(done.stdout, rf"\| {name} \| [0-9.]+")

    def test_table_compares_with_haproxy(self) -> None:
        results = {
            "anbox-tw": {"push": {"median": 2000.0}, "idle": {"median": 1.5}},
            "HAProxy": {"push": {"median": 1000.0}, "idle": {"median": 3.0}},
            "no relay": {"push": {"median": 2500.0}},
        }
        text = table(results, {"cpus": 2}, {"rounds": 7})
        self.assertIn("| anbox-tw | 2000 (2.00x) | 1.5 (0.50x) |", text)
        self.assertIn("| no relay | 2500 (2.50x) | - |", text)
        self.assertIn("rounds 7", text)
