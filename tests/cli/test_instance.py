"""The lock of an instance, and who meets whom at it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.cli._instance import Instance
from anbox_tw.errors import AlreadyRunning


class LockTests(SynchronousTestCase):
    def setUp(self) -> None:
        # short: sockets have their paths below it
        directory = tempfile.mkdtemp(prefix="lock")
        self.addCleanup(shutil.rmtree, directory, True)
        self.where = Instance.locate("one", directory, create=True)

    def test_one_holder_at_a_time(self) -> None:
        lock = self.where.take()
        error = self.assertRaises(AlreadyRunning, self.where.take)
        self.assertIn(f"pid {os.getpid()}", error.cause)
        lock.release()
        self.where.take().release()

    def test_a_lock_whose_file_was_taken_away_is_none(self) -> None:
        """The last holder releases between our opening of the file and our lock on it."""
        real, path = fcntl.flock, self.where.lock_path
        calls: list[int] = []

        def flock(descriptor: int, operation: int) -> None:
            if not calls:
                path.unlink()
            calls.append(operation)
            real(descriptor, operation)

        self.patch(fcntl, "flock", flock)
        lock = self.where.take()
        self.addCleanup(lock.release)
        self.assertRaises(AlreadyRunning, self.where.take)

    def test_a_look_is_not_taken_for_a_holder(self) -> None:
        self.where.lock_path.touch()
        descriptor = os.open(self.where.lock_path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        timer = threading.Timer(0.03, os.close, (descriptor,))
        timer.start()
        self.addCleanup(timer.join)
        self.where.take().release()

    def test_directories_that_go_meanwhile_come_back(self) -> None:
        sockets = self.where.paths.sockets
        self.where.tidy()
        self.assertFalse(os.path.exists(self.where.paths.base))
        lock = self.where.take()
        self.assertTrue(os.path.isdir(sockets))
        lock.release()

    def test_who_has_ended_takes_nothing_of_the_next(self) -> None:
        old = self.where.take()
        self.where.tidy()
        old.release()
        lock: Any = self.where.take()
        self.where.tidy_above()
        self.assertTrue(os.path.isdir(self.where.paths.sockets))
        lock.release()
