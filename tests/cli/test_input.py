"""``anbox input`` against a session with a reader on its sockets."""

from __future__ import annotations

import json

from twisted.internet import reactor
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol

from anbox_tw.device import InputDevice, InputEvent
from anbox_tw.device.evdev import ABS_MT_TRACKING_ID, EV_KEY, SYN
from tests.cli.sessions import CommandCase
from tests.session.guest import until
from tests.session.input.test_server import Reader


class InputTests(CommandCase):
    async def reader(self, device: InputDevice) -> Reader:
        reader = Reader()
        path = f"{self.session.paths.input}/event{device.value}"
        await connectProtocol(UNIXClientEndpoint(reactor, path), reader)
        self.addCleanup(
            lambda: None if reader.lost.called else (reader.transport.loseConnection(), reader.lost)[1]
        )
        await until(lambda: reader.decoder.info)
        return reader

    async def test_each_command_reaches_the_guest(self) -> None:
        self.session.startService()
        pointer, keyboard, touch = [await self.reader(device) for device in InputDevice]
        for arguments, fingers in (
            (("tap", "10", "20", "--hold", "0", "--count", "2"), 2),
            (("swipe", "0", "0", "100", "50", "--duration", "0.1", "--rate", "50"), 1),
            (("pinch", "500", "300", "50", "200", "--duration", "0.1", "--angle", "45"), 2),
            (("multitouch", "1,1:20,20", "30,30", "--duration", "0.05"), 2),
            (("mouse", "click", "5", "6"), 1),
        ):
            del touch.stamped[:]
            await self.anbox("input", *arguments)
            await until(lambda: touch.events[-1:] == [SYN])
            ups = [e for e in touch.events if e.code == ABS_MT_TRACKING_ID and e.value == -1]
            self.assertEqual(len(ups), fingers, arguments)
        await self.anbox("input", "text", "Hi", "--interval", "0.001")
        await self.anbox("input", "key", "HOME", "CTRL+C", "--hold", "0")
        await self.anbox("input", "event", "keyboard", "EV_KEY:KEY_B:1", "1:48:0", "EV_SYN:SYN_REPORT:0")
        await until(lambda: len(keyboard.events) == 12 + 4 + 8 + 3)
        self.assertEqual(
            [(e.code, e.value) for e in keyboard.events if e.type == EV_KEY],
            [
                *((42, 1), (35, 1), (35, 0), (42, 0), (23, 1), (23, 0)),
                *((172, 1), (172, 0), (29, 1), (46, 1), (46, 0), (29, 0)),
                *((48, 1), (48, 0)),
            ],
        )
        await self.anbox("input", "mouse", "wheel", "-3")
        await until(lambda: pointer.events[-1:] == [SYN])
        self.assertEqual(pointer.events[-2], InputEvent(2, 8, -3))
        listed = json.loads(await self.anbox("input", "devices", "--json"))
        self.assertEqual([one["readers"] for one in listed], [1, 1, 1])
        self.assertIn("keyboard", await self.anbox("input", "devices"))

    async def test_what_is_refused(self) -> None:
        self.session.startService()
        for arguments, code, words in (
            (("tap", "5000", "1"), 2, "not on the screen"),
            (("text", "naïve"), 2, "clipboard"),
            (("key", "HOEM"), 2, "HOME"),
            (("mouse", "move"), 2, "X Y"),
            (("mouse", "wheel"), 2, "CLICKS"),
            (("event", "touch", "1:2"), 2, "TYPE:CODE:VALUE"),
            (("multitouch", "1,2,3"), 2, "X,Y"),
            (("swipe", "1", "1", "2", "2", "--duration", "100"), 2, "--duration"),
        ):
            self.assertIn(words, await self.anbox("input", *arguments, code=code), arguments)
        await self.session.stopService()
        self.assertIn("not running", await self.anbox("input", "tap", "1", "1", code=3))
