"""Diagnoses: each failure has a stable code, and says what, why and what to do."""

from __future__ import annotations

import os
import re

from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.container.diagnosis import (
    CODES,
    LOG_TAIL_BYTES,
    DiagnosedError,
    Diagnosis,
    Probe,
    diagnose,
    log_tail,
)
from anbox_tw.errors import (
    AlreadyRunning,
    ConfigError,
    ContainerError,
    ExitCode,
    HostLacks,
)
from tests.support import REPOSITORY


class CodeTests(SynchronousTestCase):
    def test_codes_are_numbered_without_a_gap_and_each_has_a_cure(self) -> None:
        self.assertEqual(list(CODES), [f"ANBOX-C{n:03}" for n in range(1, len(CODES) + 1)])
        for entry in CODES.values():
            self.assertTrue(entry.title and entry.cure)

    def test_each_code_that_the_source_names_exists(self) -> None:
        named = set()
        for path in (REPOSITORY / "anbox_tw").rglob("*.py"):
            named |= set(re.findall(r"ANBOX-C\d\d\d", path.read_text()))
        self.assertEqual(named - set(CODES), set())

    def test_the_manual_lists_them(self) -> None:
        manual = (REPOSITORY / "docs" / "containers.md").read_text()
        rows = dict(re.findall(r"^\| `(ANBOX-C\d\d\d)` \| ([^|]*) \|", manual, re.MULTILINE))
        self.assertEqual(rows, {code: entry.title for code, entry in CODES.items()})


class DiagnoseTests(SynchronousTestCase):
    def test_each_kind_of_failure(self) -> None:
        own = DiagnosedError.of("ANBOX-C011", "no mount", "busy")
        for error, code in (
            (own, "ANBOX-C011"),
            (CancelledError(), "ANBOX-C022"),
            (DeferredTimeout("it had 3 s"), "ANBOX-C015"),
            (ConfigError("bad", "good"), "ANBOX-C001"),
            (ConfigError("bad", "good", code="ANBOX-C002"), "ANBOX-C002"),
            (AlreadyRunning("held"), "ANBOX-C007"),
            (HostLacks("no"), "ANBOX-C006"),
            (ContainerError("no", code="OTHER"), "ANBOX-C012"),
            (OSError(28, "full"), "ANBOX-C023"),
            (OSError(5, "I/O"), "ANBOX-C012"),
            (ZeroDivisionError("x"), "ANBOX-C024"),
        ):
            diagnosis = diagnose(Failure(error), "prepare", ["a line"])
            self.assertEqual(diagnosis.code, code)
            self.assertTrue(diagnosis.what and diagnosis.cure, diagnosis)
            self.assertEqual(diagnosis.log_tail, ("a line",))
        logged = DiagnosedError.of("ANBOX-C011", "no mount", log_tail=["its own"])
        self.assertEqual(diagnose(Failure(logged), "x", ["a line"]).log_tail, ("its own",))

    def test_a_diagnosed_error_is_one_of_ours(self) -> None:
        error = DiagnosedError.of("ANBOX-C010", "no namespaces", "EPERM")
        self.assertEqual(error.exit_code, ExitCode.HOST_LACKS)
        self.assertEqual(error.cure, CODES["ANBOX-C010"].cure)
        self.assertIn("ANBOX-C010: no namespaces: EPERM", str(error))
        self.assertEqual(DiagnosedError(Diagnosis("NEW-1", "x")).exit_code, ExitCode.FAILED)

    def test_as_text_and_as_data(self) -> None:
        diagnosis = Diagnosis("ANBOX-C011", "what", "why", "cure", ["one", "two"])
        self.assertEqual(
            diagnosis.lines(),
            ["ANBOX-C011: what", "  why:  why", "  cure: cure", "  log:", "    one", "    two"],
        )
        self.assertEqual(Diagnosis("ANBOX-C011", "what").lines(), ["ANBOX-C011: what"])
        self.assertEqual(diagnosis.as_dict()["log_tail"], ["one", "two"])
        self.assertEqual(Diagnosis("ANBOX-C011", "what").summary(), "what")

    def test_verdicts(self) -> None:
        self.assertEqual(Probe("x", True, "").verdict, "ok")
        self.assertEqual(Probe("x", False, "").verdict, "missing")
        self.assertEqual(Probe("x", False, "", required=False).as_dict()["verdict"], "degraded")


class LogTailTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())

    def write(self, data: bytes) -> None:
        with open(self.path, "wb") as file:
            file.write(data)

    def test_the_last_lines_of_all_files(self) -> None:
        self.write(b"".join(b"line %d\n" % n for n in range(50)))
        self.assertEqual(log_tail("/nonexistent", self.path, lines=2), ("line 48", "line 49"))

    def test_a_long_file_is_not_read_as_a_whole(self) -> None:
        self.write(b"x" * 3 * LOG_TAIL_BYTES + b"\nlast\n")
        self.assertEqual(log_tail(self.path), ("last",))

    def test_control_characters_and_long_lines_are_tamed(self) -> None:
        self.write(b"\x1b[31mred\x07\n\xff\n\n" + b"y" * 1000)
        first, second, third = log_tail(self.path)
        self.assertEqual(first, "\\x1b[31mred\\x07")
        self.assertEqual(second, "\N{REPLACEMENT CHARACTER}")
        self.assertEqual(len(third), 403)

    def test_what_is_not_a_file_gives_nothing(self) -> None:
        os.mkfifo(self.path)
        self.assertEqual(log_tail(self.path, "/"), ())
        link = self.path + "-link"
        os.symlink("/etc/passwd", link)
        self.assertEqual(log_tail(link), ())
