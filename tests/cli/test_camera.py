"""``anbox camera`` as a program, against a session."""

from __future__ import annotations

import os

from tests.cli.sessions import CommandCase


class CameraTests(CommandCase):
    async def test_list_and_set(self) -> None:
        self.session.startService()
        self.assertIn("test-pattern", await self.anbox("camera", "list"))
        path = os.path.join(self.runtime, "a.pgm")
        with open(path, "wb") as file:
            file.write(b"P5 1 1 255\n\x80")
        await self.anbox("camera", "set", "front", f"image:{os.path.relpath(path)}")
        back, front = await self.json("camera", "list")
        self.assertEqual((back["source"], front["source"]), ("test-pattern", f"image:{path}"))
        self.assertIn("is no camera", await self.anbox("camera", "set", "back", "webcam", code=2))
        self.assertIn("cannot be read", await self.anbox("camera", "set", "back", f"image:{path}x", code=2))
