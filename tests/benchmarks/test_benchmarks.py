"""The measurements run, and their table says what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import report
from benchmarks.relays import MEASURES, medians
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

    def test_forwards(self) -> None:
        """One part alone: adb 36 and our adbd beside the direct forward."""
        need_tool("gcc")
        command = [sys.executable, "-m", "benchmarks", "--quick", "--no-save", "--part", "forwards"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=90, check=True)
        self.assertIn("| way to a guest | throughput to the guest, MB/s |", done.stdout)
        self.assertRegex(done.stdout, r"\| direct forward \| [0-9.]+")
        self.assertIn("forwards: 1 rounds", done.stdout)

    def test_hardware(self) -> None:
        command = [sys.executable, "-m", "benchmarks.hardware", "--seconds", "1"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=90, check=True)
        results = json.loads(done.stdout)
        self.assertEqual(results["route"]["positions"], 11)
        self.assertEqual(set(results["camera"]["latency_ms"]), {"median", "p99", "most"})


RELAYS = {
    "anbox-tw": {"push": [2000.0, 1900.0, 2100.0], "idle": [1.5], "ping64k": [40.0]},
    "HAProxy": {"push": [1000.0], "idle": [3.0], "ping64k": [41.0]},
    "no relay": {"push": [2500.0]},
}


def document(**parts: Any) -> dict[str, Any]:
    run = {"part": "relays", "rounds": 3, "at": "12:00", "load before": "0.1", "load after": "1.0"}
    return {"host": {"cpus": 2}, "settings": {"idle streams": 7}, "runs": [run], **parts}


class ReportTests(SynchronousTestCase):
    def test_table_compares_with_haproxy(self) -> None:
        text = report.table(medians(RELAYS), MEASURES, "HAProxy")
        self.assertIn("| anbox-tw | 2000 (2.00x) | 40 (0.98x) | 1.5 (0.50x) |", text)
        self.assertIn("| no relay | 2500 (2.50x) | - | - |", text)

    def test_marks_say_what_is_missed(self) -> None:
        marks = {mark.what: mark for mark in report.marks(document(relays=medians(RELAYS)))}
        self.assertTrue(marks["Twisted's reactor: throughput h→g to HAProxy's, which splices"].reached)
        self.assertIn(
            "2.00 | at least 1.2 | reached",
            marks["Twisted's reactor: throughput h→g to HAProxy's, which splices"].row(),
        )
        self.assertTrue(marks["Twisted's reactor: 64 KiB and ack to HAProxy's"].reached)
        self.assertIn(
            "| - | 1.2 | not measured |",
            marks["Twisted's reactor: throughput g→h to HAProxy's, which splices"].row(),
        )
        slow = {**RELAYS, "anbox-tw": {"push": [1100.0]}}
        marks = {mark.what: mark for mark in report.marks(document(relays=medians(slow)))}
        self.assertIn(
            "1.10 | at least 1.2 | **missed**",
            marks["Twisted's reactor: throughput h→g to HAProxy's, which splices"].row(),
        )

    def test_several_goes_are_one_measurement(self) -> None:
        first = document(relays=medians(RELAYS))
        calls = {"anbox_tw.rpc": {"calls_per_s 1": [10.0]}, "grpcio": {"calls_per_s 1": [2.0]}}
        second = document(
            relays=medians({"anbox-tw": {"push": [4000.0, 4100.0]}}),
            rpc={"rounds": calls, "medians": {}, "million": {}},
        )
        both = report.merge(report.merge(first, second), document(rpc=second["rpc"]))
        self.assertEqual(both["relays"]["anbox-tw"]["push"]["median"], 2100.0)
        self.assertEqual(both["relays"]["HAProxy"], first["relays"]["HAProxy"])
        self.assertEqual(both["rpc"]["medians"]["grpcio"], {"calls_per_s 1": 2.0})
        self.assertEqual(len(both["rpc"]["rounds"]["grpcio"]["calls_per_s 1"]), 2)
        self.assertEqual(len(both["runs"]), 3)
        text = report.text({**both, "rpc": None})
        self.assertIn("relays: 3 rounds at 12:00, load 0.1 before and 1.0 after", text)
        self.assertIn("idle streams 7", text)

    def test_load_of_the_machine_is_judged(self) -> None:
        quiet = document(relays=medians(RELAYS))
        self.assertIn("it was quiet", report.judgement(quiet))
        quiet["runs"][0]["load before"] = "4.2"
        self.assertIn("others worked on it", report.judgement(quiet))
