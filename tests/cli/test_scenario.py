"""``anbox scenario`` as a program, against a session."""

from __future__ import annotations

import os
import signal

from tests.cli.sessions import CommandCase
from tests.session.guest import until
from tests.support import REPOSITORY


class ScenarioTests(CommandCase):
    def file(self, text: str, name: str = "a.toml") -> str:
        path = os.path.join(self.runtime, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    async def test_check_needs_no_session(self) -> None:
        good = self.file('name = "x"\n[[step]]\nat = 5\ndo = "call.in"\nnumber = "1"\n')
        self.assertEqual(await self.anbox("scenario", "check", good), "x: 1 steps in 5 s\n")
        self.assertEqual(
            await self.json("scenario", "check", good), {"name": "x", "steps": 1, "duration": 5.0}
        )
        bad = self.file(
            '\n[[step]]\nat = 5\ndo = "warp.go"\n[[step]]\nat = 6\nset = { battery = { capacity = 200 } }\n'
        )
        told = await self.anbox("scenario", "check", bad, code=2)
        self.assertIn(f"{bad}: line 2: the device knows no 'warp.go'", told)
        self.assertIn(f"{bad}: line 5: battery: capacity must be", told)
        self.assertIn("cannot be read", await self.anbox("scenario", "check", bad + "x", code=2))

    async def test_the_manuals_examples_play_without_a_mistake(self) -> None:
        self.session.startService()
        player = self.session.hardware.scenario
        for path in sorted((REPOSITORY / "docs/scenarios").iterdir()):
            await self.anbox("scenario", "check", str(path))
            # no verb fails either
            factor = "1000" if path.suffix == ".jsonl" else "300"
            program = self.start("scenario", "run", "--detach", "--factor", factor, str(path))
            self.assertEqual(await program.ended, 0, program.err)
            if path.suffix == ".toml":
                await until(lambda: player.status()["state"] == "finished")
            self.assertEqual(player.status()["errors"], [])

    async def test_run_waits_for_the_end_and_tells_what_failed(self) -> None:
        self.session.startService()
        good = self.file("[[step]]\nat = 100\nset = { battery = { capacity = 12 } }\n")
        told = await self.anbox("scenario", "run", "--factor", "1000", good)
        self.assertEqual(told, "finished: 1 steps, 0 failed\n")
        self.assertEqual(self.session.device.battery.state.capacity, 12)
        bad = self.file('[[step]]\nat = 0\ndo = "geo.fix"\nlongitude = 500\nlatitude = 1\n')
        program = self.start("scenario", "run", bad)
        self.assertEqual(await program.ended, 1)
        self.assertIn("line 1: geo.fix: longitude must be", program.err)
        self.assertEqual(program.out, "finished: 1 steps, 1 failed\n")

    async def test_it_is_stopped_by_a_signal(self) -> None:
        self.session.startService()
        long = self.file('name = "long"\n[[step]]\nat = 1000\ndo = "finger.remove"\n')
        program = self.start("scenario", "run", long)
        player = self.session.hardware.scenario
        await until(lambda: player.status()["state"] == "playing")
        assert program.transport is not None
        program.transport.signalProcess(signal.SIGINT)
        self.assertEqual(await program.ended, 130)
        self.assertEqual(player.status()["state"], "stopped")

    async def test_detached(self) -> None:
        self.session.startService()
        long = self.file('name = "long"\n[[step]]\nat = 1000\ndo = "finger.remove"\n')
        self.assertEqual(await self.anbox("scenario", "status"), "none\n")
        self.assertEqual(await self.anbox("scenario", "run", "--detach", long), "long: 1 steps in 1000 s\n")
        self.assertIn("of 1000 s, 0 of 1 steps", await self.anbox("scenario", "pause"))
        self.assertEqual((await self.json("scenario", "resume"))["state"], "playing")
        self.assertTrue((await self.anbox("scenario", "stop")).startswith("stopped: long"))
