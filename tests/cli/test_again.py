"""What ``anbox up`` leaves for another start, and that a detached one starts only once."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.cli._again import _path, recall, remember
from anbox_tw.cli._instance import Instance
from tests.integration.support import Sandbox


class MemoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="aa-"))
        self.addCleanup(shutil.rmtree, self.top, True)
        self.patch(os, "environ", {**os.environ, "XDG_STATE_HOME": str(self.top / "state"), "ANBOX_X": "1"})
        self.addCleanup(os.chdir, os.getcwd())
        self.where = Instance.locate("one", str(self.top))
        self.file = self.top / "state/anbox/up/one.json"
        self.plain = ["up", "--instance", "one", "--runtime-dir", str(self.top)]

    def test_command_line_directory_and_variables(self) -> None:
        os.chdir(self.top)
        self.patch(sys, "argv", ["anbox", "up", "-di", "one", "--rootfs", "./r"])
        remember(self.where)
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o600)
        del os.environ["ANBOX_X"]
        os.chdir("/")
        self.assertEqual(recall(self.where), ["up", "-di", "one", "--rootfs", "./r"])
        self.assertEqual((os.getcwd(), os.environ["ANBOX_X"]), (os.path.realpath(self.top), "1"))
        self.assertNotIn("PATH", json.loads(self.file.read_text())["environment"])

    def test_without_a_memory_that_fits_it_is_a_plain_start(self) -> None:
        self.assertEqual(recall(self.where), self.plain)
        self.patch(sys, "argv", ["trial", "tests"])
        remember(self.where)
        self.assertFalse(self.file.exists())
        self.patch(sys, "argv", ["anbox", "up"])
        remember(self.where)
        other = Instance.locate("one", tempfile.mkdtemp(prefix="ab-", dir=self.top))
        self.assertEqual(recall(other)[-1], other.paths.runtime_dir)
        for bad in (
            "",
            "[]",
            "{}",
            json.dumps({"arguments": [1], "directory": "/", "environment": {}, "runtime_dir": str(self.top)}),
        ):
            self.file.write_text(bad)
            self.assertEqual(recall(self.where), self.plain)

    def test_a_home_that_is_none_is_not_the_current_directory(self) -> None:
        for home in ("", "relative"):
            self.patch(os, "environ", {"HOME": home})
            self.assertTrue(_path(self.where).is_absolute())

    def test_a_state_directory_that_cannot_be_written_is_no_hindrance(self) -> None:
        (self.top / "state").write_text("in the way")
        self.patch(sys, "argv", ["anbox", "up"])
        remember(self.where)
        self.assertEqual(recall(self.where), self.plain)


class DetachTests(SynchronousTestCase):
    def test_short_options_in_one_word(self) -> None:
        """``-dv`` was handed on as it is, and each child detached again."""
        box = Sandbox(self)
        done = box.anbox("up", "-dv", "--data-path", box.data_path())
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        ups = [line for line in box.processes() if " up -dv" in line]
        self.assertEqual(len(ups), 1, ups)
        self.assertEqual(box.anbox("down").returncode, 0)
