"""The undo journal: on the disk before the change, undone in reverse, by one manager only."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import zlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.container.commands import Commands
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.journal import (
    MAX_JOURNAL_BYTES,
    UNDO_TIMEOUT_S,
    Journal,
    UndoContext,
    UndoFailed,
    UndoKind,
    UndoKinds,
)
from anbox_tw.errors import AlreadyRunning

HOLDER = """
import sys, time
from twisted.internet.task import Clock
from tests.container.doubles import a_journal
journal = a_journal(Clock(), sys.argv[1])
journal.record("directory", path=sys.argv[2])
journal.phase("prepare")
print("held", flush=True)
time.sleep(60)
"""

ORPHAN = """
import os, subprocess, sys
from twisted.internet.task import Clock
from tests.container.doubles import a_journal
journal = a_journal(Clock(), sys.argv[1])
os.set_inheritable(journal._descriptor, True)
subprocess.Popen(["sleep", "0.3"], pass_fds=[journal._descriptor], stdout=subprocess.DEVNULL)
print("held", flush=True)
os._exit(0)
"""


class JournalCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.directory = os.path.abspath(self.mktemp())
        self.path = f"{self.directory}/state/undo.journal"
        self.undone: list[Any] = []
        self.broken: set[Any] = set()
        self.hold: Deferred[None] | None = None
        self.kinds = UndoKinds()
        self.kinds.register(
            UndoKind("thing", self.undo, lambda args: f"thing {args['n']}", lambda args: f"rm {args['n']}")
        )

    async def undo(self, args: Any, context: UndoContext) -> None:
        if self.hold is not None:
            await self.hold
        if args["n"] in self.broken:
            raise OSError(16, "busy")
        self.undone.append(args["n"])

    def journal(self) -> Journal:
        journal = Journal(self.path, UndoContext(self.clock, Commands(self.clock)), self.kinds)
        journal.open()
        self.addCleanup(journal.close)
        return journal

    def die(self, journal: Journal) -> None:
        """What the kernel does when the manager is killed: the descriptor is closed, nothing else happens."""
        os.close(journal._descriptor)
        journal._descriptor = -1

    def content(self) -> bytes:
        with open(self.path, "rb") as file:
            return file.read()


class RecordTests(JournalCase):
    def test_an_entry_is_in_the_file_before_record_returns(self) -> None:
        journal = self.journal()
        synced: list[bytes] = []
        self.patch(os, "fdatasync", lambda descriptor: synced.append(self.content()))
        journal.record("thing", n=1)
        self.assertIn(b'"n":1', synced[0])

    def test_undoing_is_in_reverse_and_empties_the_file(self) -> None:
        journal = self.journal()
        for n in range(5):
            journal.record("thing", n=n)
        self.successResultOf(journal.undo_all())
        self.assertEqual(self.undone, [4, 3, 2, 1, 0])
        self.assertEqual(journal.pending, [])
        journal.close()
        self.assertFalse(os.path.exists(self.path))

    def test_done_takes_an_entry_out_and_twice_does_no_harm(self) -> None:
        journal = self.journal()
        first, second = journal.record("thing", n=1), journal.record("thing", n=2)
        journal.done(first)
        journal.done(first)
        self.die(journal)
        self.assertEqual([e.args["n"] for e in self.journal().pending], [2])
        self.assertEqual(second.number, 2)

    def test_what_becomes_known_later_is_kept(self) -> None:
        journal = self.journal()
        entry = journal.record("thing", n=1)
        self.assertEqual(journal.more(entry, pid=12).args, {"n": 1, "pid": 12})
        self.die(journal)
        again = self.journal()
        self.assertEqual(again.pending[0].args, {"n": 1, "pid": 12})
        again.done(again.pending[0])
        self.assertEqual(again.more(entry, pid=13), entry)

    def test_the_file_does_not_grow_with_the_number_of_runs(self) -> None:
        journal = self.journal()
        sizes = set()
        for _ in range(20):
            journal.record("thing", n=1)
            self.successResultOf(journal.undo_all())
            sizes.add(len(self.content()))
        self.assertLess(max(sizes), 200)

    def test_a_closed_journal_and_an_unknown_kind_are_refused(self) -> None:
        journal = self.journal()
        self.assertRaises(ValueError, journal.record, "nonsense")
        self.assertTrue(journal.is_open)
        journal.open()
        journal.close()
        journal.close()
        self.assertFalse(journal.is_open)
        self.assertRaises(RuntimeError, journal.record, "thing", n=1)

    def test_a_kind_has_one_meaning(self) -> None:
        self.assertRaises(ValueError, self.kinds.register, UndoKind("thing", self.undo, str))
        self.assertEqual(list(self.kinds.copy()), ["thing"])

    def test_an_entry_that_could_not_be_read_back_is_not_written(self) -> None:
        journal = self.journal()
        self.assertRaises(DiagnosedError, journal.record, "thing", n="x" * 20000)

    def test_a_full_disk_is_told_and_leaves_no_half_line(self) -> None:
        journal = self.journal()
        journal.record("thing", n=1)
        size = len(self.content())
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGXFSZ, signal.SIG_DFL)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
        try:
            error = self.assertRaises(DiagnosedError, journal.record, "thing", n=2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        self.assertEqual(error.code, "ANBOX-C023")
        self.assertEqual(len(self.content()), size)
        journal.record("thing", n=3)
        self.die(journal)
        again = self.journal()
        self.assertEqual([e.args["n"] for e in again.pending], [1, 3])
        self.assertEqual(again.damaged_lines, 0)


class UndoTests(JournalCase):
    def test_one_failure_does_not_keep_the_others(self) -> None:
        journal = self.journal()
        for n in range(3):
            journal.record("thing", n=n)
        self.broken.add(1)
        error = self.failureResultOf(journal.undo_all(), UndoFailed).value
        self.assertEqual(self.undone, [2, 0])
        self.assertEqual([f.what for f in error.failures], ["thing 1"])
        self.assertIn("busy", error.diagnosis.why)
        self.assertIn("rm 1", error.diagnosis.cure)
        self.broken.clear()
        self.successResultOf(journal.undo_all())
        self.assertEqual(self.undone, [2, 0, 1])

    def test_two_callers_wait_for_one_run(self) -> None:
        journal = self.journal()
        journal.record("thing", n=1)
        self.hold = Deferred()
        first, second, third = journal.undo_all(), journal.undo_all(), journal.undo_all()
        third.cancel()
        self.failureResultOf(third)
        self.hold.callback(None)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.undone, [1])

    def test_a_failure_nobody_waits_for_is_kept_pending(self) -> None:
        journal = self.journal()
        journal.record("thing", n=1)
        self.broken.add(1)
        self.hold = Deferred()
        waiter = journal.undo_all()
        waiter.cancel()
        self.failureResultOf(waiter)
        self.hold.callback(None)
        self.assertEqual(len(journal.pending), 1)

    def test_an_undo_that_hangs_has_a_limit(self) -> None:
        journal = self.journal()
        journal.record("thing", n=1)
        self.hold = Deferred()
        waiter = journal.undo_all()
        self.clock.advance(UNDO_TIMEOUT_S)
        self.assertIn("TimeoutError", str(self.failureResultOf(waiter, UndoFailed).value))

    def test_an_unknown_kind_of_a_newer_version_stays(self) -> None:
        journal = self.journal()
        self.kinds.register(UndoKind("new", self.undo, str))
        journal.record("new", n=1)
        self.die(journal)
        del self.kinds._kinds["new"]
        again = self.journal()
        error = self.failureResultOf(again.undo_all(), UndoFailed).value
        self.assertIn("'new'", str(error))
        again.close()
        self.assertTrue(os.path.exists(self.path))

    def test_an_entry_whose_arguments_are_damaged_harms_no_other(self) -> None:
        journal = self.journal()
        journal.record("thing", n=1)
        journal._pending[2] = type(journal.pending[0])(2, "thing", {})
        self.failureResultOf(journal.undo_all(), UndoFailed)
        self.assertEqual(self.undone, [1])


class LockTests(JournalCase):
    def test_two_managers_never_hold_it_together(self) -> None:
        journal = self.journal()
        error = self.assertRaises(AlreadyRunning, self.journal)
        self.assertIn(f"pid {os.getpid()}", error.cause)
        self.assertEqual(error.code, "ANBOX-C007")
        journal.close()
        self.journal()

    def test_a_killed_manager_gives_it_up_and_leaves_its_entries(self) -> None:
        victim = f"{self.directory}/victim"
        os.makedirs(victim)
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, self.path, victim], stdout=subprocess.PIPE, text=True
        )
        try:
            assert holder.stdout is not None
            self.assertEqual(holder.stdout.readline(), "held\n")
            error = self.assertRaises(AlreadyRunning, self.journal)
            self.assertIn(f"pid {holder.pid}, command", error.cause)
        finally:
            holder.kill()
            holder.wait()
            holder.stdout.close() if holder.stdout else None
        journal = self.journal()
        self.assertEqual([(e.kind, e.args["path"]) for e in journal.pending], [("directory", victim)])
        self.assertEqual(journal.last_phase, "prepare")

    def test_an_orphan_of_a_killed_manager_is_waited_for(self) -> None:
        """A child between fork and exec has what its parent has, the lock too, and lets go of it in a moment."""
        done = subprocess.run([sys.executable, "-c", ORPHAN, self.path], stdout=subprocess.PIPE, text=True)
        self.assertEqual(done.stdout, "held\n")
        self.journal()

    def test_a_journal_deleted_by_its_last_holder_is_made_anew(self) -> None:
        first = self.journal()
        opened = os.open

        def slow(path: Any, *args: Any, **kw: Any) -> int:
            descriptor = opened(path, *args, **kw)
            if path == self.path and first.is_open:
                first.close()  # between our open and our lock
            return descriptor

        self.patch(os, "open", slow)
        second = self.journal()
        self.assertTrue(os.path.exists(self.path))
        second.record("thing", n=1)
        self.assertIn(b'"n":1', self.content())

    def test_what_is_not_a_file_is_not_taken_for_one(self) -> None:
        os.makedirs(os.path.dirname(self.path))
        for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)):
            make(self.path)
            error = self.assertRaises(DiagnosedError, self.journal)
            self.assertEqual(error.code, "ANBOX-C004")
            os.rmdir(self.path) if os.path.isdir(self.path) else os.unlink(self.path)

    def test_a_directory_that_cannot_be_made_is_told_with_its_cure(self) -> None:
        os.makedirs(self.directory)
        with open(f"{self.directory}/state", "w"):
            pass
        error = self.assertRaises(DiagnosedError, self.journal)
        self.assertIn("--data-path", error.cure)


def line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record).encode()
    return b"%s\t%08x\n" % (text, zlib.crc32(text))


class DamageTests(JournalCase):
    def written(self, data: bytes) -> Journal:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with open(self.path, "wb") as file:
            file.write(data)
        return self.journal()

    def test_a_torn_last_line_is_left_out_and_not_written_to(self) -> None:
        journal = self.journal()
        journal.record("thing", n=1)
        journal.record("thing", n=2)
        self.die(journal)
        again = self.written(self.content()[:-9])
        self.assertEqual([e.args["n"] for e in again.pending], [1])
        self.assertEqual(again.damaged_lines, 1)
        again.record("thing", n=3)
        self.die(again)
        self.assertEqual([e.args["n"] for e in self.journal().pending], [1, 3])

    def test_lines_that_make_no_sense_are_left_out(self) -> None:
        good = line({"op": "do", "n": 7, "kind": "thing", "args": {"n": 1}, "time": 1.5})
        bad = [
            b"\x00\xff garbage\n",
            good[:-3] + b"0\n",
            line({"op": "do", "n": True, "kind": "thing", "args": {}}),
            line({"op": "do", "n": -1, "kind": "thing", "args": {}}),
            line({"op": "do", "n": 8, "kind": 5, "args": {}}),
            line({"op": "do", "n": 8, "kind": "thing", "args": []}),
            line({"op": "what", "n": 8}),
            line({"op": "more", "n": 8}),
            b"[1]\t%08x\n" % zlib.crc32(b"[1]"),
        ]
        journal = self.written(b"".join(bad) + good + line({"op": "more", "n": 99, "args": {}}))
        self.assertEqual([(e.number, e.args["n"], e.timestamp) for e in journal.pending], [(7, 1, 1.5)])
        self.assertEqual(journal.damaged_lines, len(bad))
        self.assertGreater(journal.record("thing", n=2).number, 7)

    def test_a_huge_file_is_refused(self) -> None:
        error = self.assertRaises(DiagnosedError, self.written, b"x" * (MAX_JOURNAL_BYTES + 1))
        self.assertEqual(error.code, "ANBOX-C017")

    @settings(derandomize=True, deadline=None, max_examples=200)
    @given(st.binary(max_size=400))
    def test_any_bytes_are_survived(self, data: bytes) -> None:
        for record in Journal._records(data):
            self.assertTrue(record is None or isinstance(record, dict))

    @settings(derandomize=True, deadline=None, max_examples=100)
    @given(st.lists(st.tuples(st.sampled_from(["do", "done", "more"]), st.integers(1, 6)), max_size=30))
    def test_reading_back_gives_what_was_pending(self, steps: list[tuple[str, int]]) -> None:
        """Whatever order of recording and finishing: a reader sees the writer's own view."""
        directory = os.path.abspath(self.mktemp())
        self.path = f"{directory}/j"
        journal = self.journal()
        for op, which in steps:
            if op == "do":
                journal.record("thing", n=which)
            elif journal.pending:
                entry = journal.pending[which % len(journal.pending)]
                journal.done(entry) if op == "done" else journal.more(entry, extra=which)
        wanted = journal.pending
        self.die(journal)
        again = self.journal()
        self.assertEqual([(e.number, e.args) for e in again.pending], [(e.number, e.args) for e in wanted])
        self.die(again)
