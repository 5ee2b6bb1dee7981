"""The applications in tap/ run."""

from __future__ import annotations

import signal
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support import Sandbox, eventually
from tests.support import REPOSITORY


class TapTests(SynchronousTestCase):
    def test_both_managers_in_one_process(self) -> None:
        box = Sandbox(self)
        source = (REPOSITORY / "tap/anbox.tac").read_text()
        # root's data is in /var/lib otherwise, where other tests may be at work
        changed = source.replace('"process"])', f'"process", "--data-path", "{box.data_path()}"])')
        self.assertNotEqual(source, changed)
        (box.directory / "anbox.tac").write_text(changed)
        log = (box.directory / "log").open("w")
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from twisted.scripts.twistd import run; run()",
                "-n",
                "--pidfile=",
                "-y",
                "anbox.tac",
            ],
            cwd=box.directory,
            env=box.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        log.close()
        box._running.append(process)
        waited = box.anbox("wait", "--for", "booted")
        self.assertEqual(waited.returncode, 0, waited.stderr + (box.directory / "log").read_text())
        self.assertEqual(box.anbox("shell", "--", "echo", "embedded").stdout, "embedded\n")
        process.send_signal(signal.SIGTERM)
        self.assertIn(
            process.wait(40), (0, -signal.SIGTERM)
        )  # twistd ends itself by the signal that ended it
        eventually(lambda: not box.processes(), "no process left")
        self.assertNotIn("Unhandled", (box.directory / "log").read_text())
