"""The input sockets with real readers: the order, slow ones, late ones, hostile ones."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from anbox_tw.device import Device, InputDevice, InputEvent
from anbox_tw.device.evdev import (
    ABS_MT_POSITION_X,
    ABS_MT_TRACKING_ID,
    EV_ABS,
    EV_KEY,
    EV_SYN,
    INFO_BYTES,
    SYN,
    SYN_DROPPED,
    EventDecoder,
    StampedEvent,
    info_for,
)
from anbox_tw.device.injector import Injector
from anbox_tw.errors import AlreadyRunning
from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.network import Connections
from anbox_tw.session.errors import BadRequest
from anbox_tw.session.input import InputServer, register_input_verbs
from anbox_tw.session.input.server import MAX_READERS, MAX_WAITING_EVENTS
from anbox_tw.session.verbs import DeviceVerbs
from tests.session.guest import until


class Reader(Protocol):
    """A guest's reader."""

    transport: Any

    def __init__(self) -> None:
        self.decoder = EventDecoder()
        self.stamped: list[StampedEvent] = []
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.stamped += self.decoder.receive_data(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)

    @property
    def events(self) -> list[InputEvent]:
        return [one.event for one in self.stamped]


class InputCase(TestCase):
    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="ai-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.device = Device(width=1000, height=500)
        self.server = InputServer(reactor, self.device, self.directory)
        self.server.startService()
        self.addCleanup(self.server.stopService)
        self.injector = Injector(self.device, reactor)

    def path(self, device: InputDevice) -> str:
        return f"{self.directory}/event{device.value}"

    async def reader(self, device: InputDevice = InputDevice.TOUCH) -> Reader:
        reader = Reader()
        await connectProtocol(UNIXClientEndpoint(reactor, self.path(device)), reader)
        self.addCleanup(
            lambda: None if reader.lost.called else (reader.transport.loseConnection(), reader.lost)[1]
        )
        await until(lambda: reader.decoder.info)
        return reader

    def inject(self, *events: InputEvent, device: InputDevice = InputDevice.TOUCH) -> None:
        self.device.input.inject(device, [*events, SYN])

    def connections(self, device: InputDevice = InputDevice.TOUCH) -> Connections:
        return self.server.connections[f"event{device.value}"]


def position(x: int) -> InputEvent:
    return InputEvent(EV_ABS, ABS_MT_POSITION_X, x)


class ServerTests(InputCase):
    async def test_each_device_says_what_it_is(self) -> None:
        self.device.display.update(width=320, height=200)
        for device in InputDevice:
            self.assertEqual(stat.S_IMODE(os.stat(self.path(device)).st_mode), 0o666)
            reader = await self.reader(device)
            self.assertEqual(reader.decoder.info, info_for(device, 320, 200))

    async def test_every_reader_gets_every_batch_with_its_time(self) -> None:
        readers = [await self.reader() for _ in range(3)]
        other = await self.reader(InputDevice.KEYBOARD)
        before = time.monotonic_ns() // 1000
        for number in range(500):
            self.inject(position(number), InputEvent(EV_ABS, 54, number))
        after = time.monotonic_ns() // 1000
        await until(lambda: all(len(reader.stamped) == 1500 for reader in readers))
        for reader in readers:
            self.assertEqual(
                [e.value for e in reader.events if e.code == ABS_MT_POSITION_X], list(range(500))
            )
            stamps = [one.microseconds for one in reader.stamped]
            self.assertEqual(stamps, sorted(stamps))
            self.assertLessEqual(before, stamps[0])
            self.assertLessEqual(stamps[-1], after)
            for batch in range(0, 1500, 3):
                self.assertEqual(len(set(stamps[batch : batch + 3])), 1)
        self.assertEqual(other.events, [])
        self.assertEqual(
            self.server.describe()[2],
            {"device": "event2", "kind": "touch", "readers": 3, "events": 1500, "lost": 0},
        )

    async def test_a_slow_reader_loses_by_rule_and_the_others_nothing(self) -> None:
        good = await self.reader()
        slow = socket.socket(socket.AF_UNIX)
        self.addCleanup(slow.close)
        slow.setblocking(False)
        slow.connect(self.path(InputDevice.TOUCH))
        await until(lambda: len(self.connections()) == 2)
        self.inject(InputEvent(EV_ABS, ABS_MT_TRACKING_ID, 1), position(0))
        count = 1
        # 40 a turn, as a reactor with work does them, until the slow one has lost some
        while not self.server.describe()[2]["lost"]:
            for _ in range(40):
                self.inject(position(count))
                count += 1
            await until(lambda: len(good.stamped) == 3 + (count - 1) * 2)
        for _ in range(100):  # what comes while it is lost is lost as well
            self.inject(position(count))
            count += 1
        lost = self.server.describe()[2]["lost"]
        self.assertGreater(lost, MAX_WAITING_EVENTS)
        self.assertEqual(
            [e.value for e in good.events if e.code == ABS_MT_POSITION_X][-100:],
            list(range(count - 200, count - 100)),
        )

        decoder = EventDecoder()
        seen: list[InputEvent] = []

        def reads() -> bool:
            try:
                seen.extend(one.event for one in decoder.receive_data(slow.recv(1 << 20)))
            except BlockingIOError:
                pass
            return (
                any(event.type == EV_SYN and event.code == SYN_DROPPED for event in seen) and len(seen) > at()
            )

        def at() -> int:
            dropped = [n for n, e in enumerate(seen) if e.type == EV_SYN and e.code == SYN_DROPPED]
            return dropped[0] + 4 if dropped else len(seen)

        await until(reads)
        where = at() - 4
        # Before the loss: whole batches in order, without a gap.
        self.assertEqual(seen[where - 1], SYN)
        values = [e.value for e in seen[:where] if e.code == ABS_MT_POSITION_X]
        self.assertEqual(values, list(range(len(values))))
        self.assertEqual(seen[:where].count(SYN), len(values))
        # After it: it is told, and where the finger is now.
        self.assertEqual(seen[where + 1], SYN)
        self.assertEqual(
            seen[where + 2 : where + 5], [InputEvent(EV_ABS, ABS_MT_TRACKING_ID, 1), position(count - 1), SYN]
        )
        self.assertEqual(len(values) * 2 + 1 + lost, 1 + count * 2)
        # And it is a reader like any other again.
        seen.clear()
        self.inject(position(7))

        def again() -> bool:
            try:
                seen.extend(one.event for one in decoder.receive_data(slow.recv(1 << 20)))
            except BlockingIOError:
                pass
            return len(seen) == 2

        await until(again)
        self.assertEqual(seen, [position(7), SYN])

    async def test_a_late_reader_hears_what_is_down(self) -> None:
        self.injector.key("SHIFT", True)
        self.injector.mouse_move(5, 6)
        self.injector.mouse_button("left", True)
        keyboard, touch = await self.reader(InputDevice.KEYBOARD), await self.reader()
        await until(lambda: len(keyboard.events) == 2 and len(touch.events) == 4)
        self.assertEqual(keyboard.events, [InputEvent(EV_KEY, 42, 1), SYN])
        self.assertEqual(touch.events[0], InputEvent(EV_ABS, ABS_MT_TRACKING_ID, 1))
        self.injector.mouse_button("left", False)
        await until(lambda: len(touch.events) == 6)
        self.assertEqual(touch.events[4:], [InputEvent(EV_ABS, ABS_MT_TRACKING_ID, -1), SYN])

    async def test_a_dead_reader_is_seen_without_sending(self) -> None:
        reader = await self.reader()
        self.assertEqual(len(self.connections()), 1)
        reader.transport.loseConnection()
        await until(lambda: len(self.connections()) == 0)
        self.assertEqual(self.server.describe()[2]["readers"], 0)

    async def test_a_reader_that_writes_is_closed_and_nobody_else_notices(self) -> None:
        good, bad = await self.reader(), await self.reader()
        bad.transport.write(os.urandom(1000))
        await bad.lost
        self.inject(position(1))
        await until(lambda: len(good.events) == 2)
        self.assertEqual(len(self.connections()), 1)

    async def test_readers_have_a_limit(self) -> None:
        for _ in range(MAX_READERS):
            await self.reader()
        refused = await connectProtocol(UNIXClientEndpoint(reactor, self.path(InputDevice.TOUCH)), Reader())
        await refused.lost
        self.assertIsNone(refused.decoder.info)

    async def test_stop_and_start_again(self) -> None:
        stuck = socket.socket(socket.AF_UNIX)
        self.addCleanup(stuck.close)
        stuck.connect(self.path(InputDevice.TOUCH))
        await until(lambda: len(self.connections()) == 1)
        for number in range(20_000):
            self.inject(position(number))
        await self.server.stopService()
        await self.server.stopService()
        self.assertEqual(os.listdir(self.directory), [])
        self.assertEqual(len(self.connections()), 0)
        self.inject(position(1))
        self.server.startService()
        reader = await self.reader()
        self.inject(position(3))
        await until(lambda: len(reader.events) >= 2)

    async def test_a_second_server_is_refused_and_takes_nothing(self) -> None:
        second = InputServer(reactor, self.device, self.directory)
        self.assertRaises(AlreadyRunning, second.startService)
        self.assertFalse(second.running)
        self.assertEqual(sorted(os.listdir(self.directory)), ["event0", "event1", "event2"])
        await self.reader()

    async def test_a_thousand_touches_a_second_in_order(self) -> None:
        reader = await self.reader()
        await self.injector.swipe(0, 0, 999, 499, duration=2, rate=1000)
        await until(lambda: len(reader.events) and reader.events[-2].value == -1)
        moves = [e.value for e in reader.events if e.code == ABS_MT_POSITION_X]
        self.assertEqual(moves, sorted(moves))
        batches = reader.events.count(SYN)
        # positions that round to the same pixel are not told again
        self.assertGreaterEqual(batches, 1000)
        self.assertEqual(reader.decoder.info, info_for(InputDevice.TOUCH, 1000, 500))

    def test_interfaces(self) -> None:
        for listener in self.server.listeners:
            self.assertTrue(IConnectionCreator.providedBy(listener.creator))
        self.assertEqual(INFO_BYTES, 896)


class VerbTests(InputCase):
    def setUp(self) -> None:
        super().setUp()
        self.verbs = DeviceVerbs(self.device)
        register_input_verbs(self.verbs, self.injector, self.server)

    async def run_verb(self, name: str, **arguments: Any) -> Any:
        return await self.verbs.run(f"input.{name}", arguments)

    async def test_each(self) -> None:
        touch, keyboard, pointer = [
            await self.reader(device)
            for device in (InputDevice.TOUCH, InputDevice.KEYBOARD, InputDevice.POINTER)
        ]
        await self.run_verb("tap", x=1, y=2, hold=0)
        await self.run_verb("swipe", x1=1, y1=2, x2=30, y2=40, duration=0.05, rate=100)
        await self.run_verb("pinch", x=100, y=100, start=10, end=100, duration=0.02)
        await self.run_verb("multitouch", paths=[[[1, 1], [2, 2]], [[5, 5]]], duration=0.02)
        await self.run_verb("text", text="Hi!", interval=0.001)
        await self.run_verb("key", key="HOME", hold=0)
        await self.run_verb("key", key="A", action="down")
        await self.run_verb("key", key=30, action="up")
        await self.run_verb("mouse", action="click", x=3, y=4)
        await self.run_verb("mouse", action="wheel", clicks=-1)
        await self.run_verb(
            "event", device="keyboard", events=[["EV_KEY", "KEY_B", 1], [1, 48, "0x0"], ["EV_SYN", 0, 0]]
        )
        await until(
            lambda: keyboard.events[-1:] == [SYN] and len(keyboard.events) > 20 and len(pointer.events) == 4
        )
        self.assertEqual(keyboard.events[-3:], [InputEvent(EV_KEY, 48, 1), InputEvent(EV_KEY, 48, 0), SYN])
        ups = [e for e in touch.events if e.code == ABS_MT_TRACKING_ID and e.value == -1]
        self.assertEqual(len(ups), 1 + 1 + 2 + 2 + 1)
        devices = await self.run_verb("devices")
        self.assertEqual([one["kind"] for one in devices], ["pointer", "keyboard", "touch"])
        self.assertEqual([one["readers"] for one in devices], [1, 1, 1])

    async def test_what_is_refused_injects_nothing(self) -> None:
        from anbox_tw.errors import AnboxError

        reader = await self.reader()
        for name, arguments in (
            ("tap", {"x": "1", "y": 2}),
            ("tap", {"x": 1}),
            ("tap", {"x": None, "y": 2}),
            ("tap", {"x": 1, "y": 1e9}),
            ("tap", {"x": 1, "y": 1, "count": 1e9}),
            ("swipe", {"x1": 1, "y1": 1, "x2": 1, "y2": 1, "duration": float("nan")}),
            ("multitouch", {"paths": "no"}),
            ("multitouch", {"paths": [[[1]]]}),
            ("multitouch", {"paths": [[[1, 1]]] * 11}),
            ("multitouch", {"paths": []}),
            ("text", {"text": 5}),
            ("text", {"text": "é"}),
            ("key", {"key": "NO_SUCH"}),
            ("key", {"key": True}),
            ("key", {"key": "A", "action": "hit"}),
            ("mouse", {"action": "fly"}),
            ("mouse", {"action": "move", "x": 1}),
            ("mouse", {"action": "click", "button": "fourth"}),
            ("mouse", {"action": "wheel", "clicks": 1e6}),
            ("event", {"device": "drum", "events": []}),
            ("event", {"device": "touch", "events": [[1, 2]]}),
            ("event", {"device": "touch", "events": [["EV_NO", 2, 3]]}),
            ("event", {"device": "touch", "events": [[1, 2, 1 << 40]]}),
            ("event", {"device": "touch", "events": [[1.5, 2, 3]]}),
            ("event", {"device": "touch", "events": {}}),
        ):
            with self.assertRaises(AnboxError, msg=f"{name} {arguments}") as caught:
                await self.run_verb(name, **arguments)
            self.assertIsInstance(caught.exception, AnboxError)
        with self.assertRaises(BadRequest):
            await self.run_verb("tap", x=1, y=1, z=1)
        self.assertEqual(reader.events, [])
