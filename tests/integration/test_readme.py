"""The README's commands, in a fresh clone, as they stand there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support import Sandbox, eventually
from tests.support import REPOSITORY, need_tool


def shell_blocks(page: Path) -> list[list[str]]:
    """The commands of each ``sh`` block, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.S | re.M)
    return [
        [line.split("  #")[0].rstrip() for line in block.splitlines() if line.strip()] for block in blocks
    ]


class ReadmeTests(SynchronousTestCase):
    def clone(self, box: Sandbox) -> Path:
        """A fresh clone whose .venv is already made: the installation itself is what CI does first."""
        clone = box.directory / "clone"
        listed = subprocess.run(
            [need_tool("git"), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        ).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (REPOSITORY / name).exists():
                (clone / name).parent.mkdir(parents=True, exist_ok=True)
                (clone / name).write_bytes((REPOSITORY / name).read_bytes())
        binaries = clone / ".venv" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "python").symlink_to(sys.executable)
        script = binaries / "anbox"
        script.write_text(f'#!/bin/sh\nPYTHONPATH={clone} exec {sys.executable} -m anbox_tw.cli "$@"\n')
        script.chmod(0o755)
        for mark in (".ready-run", ".ready-dev"):
            (clone / ".venv" / mark).touch()
        return clone

    def test_make_run_and_the_second_terminal(self) -> None:
        need_tool("make")
        box = Sandbox(self)
        clone = self.clone(box)
        first, second = shell_blocks(REPOSITORY / "README.md")[:2]
        self.assertEqual(first, ["make run", "make test"])
        if os.geteuid() == 0:
            # root's data is in /var/lib otherwise, where other tests may be at work
            box.environment["ANBOX_DATA_PATH"] = box.data_path()
        with (box.directory / "make.log").open("w") as log:
            make = subprocess.Popen(
                first[0].split(),
                cwd=clone,
                env=box.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        box._running.append(make)  # type: ignore[arg-type]
        outputs = []
        for line in second:
            done = subprocess.run(
                line,
                shell=True,
                cwd=clone,
                env=box.environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=90,
            )
            expected = 7 if "exit 7" in line else 0
            self.assertEqual(
                done.returncode,
                expected,
                f"{line}: {done.stdout}{done.stderr}{(box.directory / 'make.log').read_text()}",
            )
            outputs.append(done.stdout)
        self.assertIn("hi\n", outputs)
        eventually(lambda: make.poll() is not None, "make run ends after anbox down")
        self.assertEqual(make.returncode, 0)
        self.assertEqual(box.leftovers(), [])

    def test_ctrl_c_ends_make_run_and_leaves_nothing(self) -> None:
        need_tool("make")
        box = Sandbox(self)
        clone = self.clone(box)
        box.environment["ANBOX_DATA_PATH"] = box.data_path()
        make = subprocess.Popen(
            ["make", "run"],
            cwd=clone,
            env=box.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        box._running.append(make)  # type: ignore[arg-type]
        box.booted()
        os.killpg(make.pid, signal.SIGINT)
        make.wait(40)
        eventually(lambda: not box.processes(), "no process left")
        self.assertEqual(box.leftovers(), [])
