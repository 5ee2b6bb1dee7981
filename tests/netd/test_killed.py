"""kill -9 of a netd in the middle of its changes: the next start and stop leave the namespace as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support import REPOSITORY, need_root, need_tool

SOAK = os.environ.get("ANBOX_TW_SOAK") == "1"
"""Kill at every single note and change; takes half a minute."""


class KilledTests(TestCase):
    timeout = 200

    async def test_the_next_start_and_stop_leave_the_namespace_as_it_was(self) -> None:
        need_root()
        for tool in ("unshare", "ip", "nft", "sysctl"):
            need_tool(tool)
        directory = tempfile.mkdtemp(prefix="anbox-netd-test-")
        self.addCleanup(shutil.rmtree, directory, True)
        step = "1" if SOAK else "7"
        words = ["unshare", "-n", sys.executable, "-m", "tests.netd.netd_victim", directory, step]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = await deferToThread(
            lambda: subprocess.run(
                words, capture_output=True, text=True, env=environment, check=False, timeout=190
            )
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        for each in found:
            self.assertEqual(each["status"][1], 0, (each["moment"], done.stderr))
            self.assertEqual(each["after"], each["before"], each["moment"])
            self.assertEqual(each["left"], [], each["moment"])
        killed = [each for each in found if each["status"][0] == -signal.SIGKILL]
        self.assertEqual([each["status"][0] for each in found if each not in killed], [0, 0], done.stderr)
        for where in ("note", "change"):
            self.assertGreater(sum(where in each["moment"] for each in killed), 3)
        # something of each kind was there to be undone
        for part in found[0]["before"]:
            changed = sum(each["dead"][part] != each["before"][part] for each in killed)
            self.assertGreater(changed, 0, part)
