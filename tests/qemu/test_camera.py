"""The camera's protocol on a clock of the test's, its pictures, and real ffmpeg."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import zlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from anbox_tw.errors import ConfigError
from anbox_tw.interfaces import ICameraSource, ICameraStream, IPipeService
from anbox_tw.qemu import camera as camera_module
from anbox_tw.qemu._camera_wire import FORMATS, MAX_PENDING_BYTES, MAX_QUERY_BYTES, QueryDecoder, fourcc
from anbox_tw.qemu.camera import CameraService
from anbox_tw.qemu.camera_sources import ImageFiles, TestPattern, Video, make_source, parse_source
from anbox_tw.qemu.errors import CameraError, QueryError
from anbox_tw.qemu.picture import Picture, colour_bars, cover, read_netpbm, to_preview, to_video
from tests.qemu.guests import GUEST, Guest, ServiceCase
from tests.support import REPOSITORY, need_tool

VECTORS = json.loads((REPOSITORY / "protocols/qemu/vectors/camera.json").read_text())


@implementer(ICameraSource, ICameraStream)
class Scripted:
    """A source and its stream, for faults: hands out what the test sets."""

    name = "scripted"

    def __init__(self) -> None:
        self.starting: Any = succeed(self)
        self.picture: Any = None
        self.stops = 0
        self.stopping: Deferred[None] | None = None

    def start(self, width: int, height: int) -> Deferred[ICameraStream]:
        self.size = width, height
        self.picture = self.picture or succeed(colour_bars(width, height, 0))
        found: Deferred[ICameraStream] = self.starting
        return found

    def next_picture(self) -> Deferred[Picture]:
        found: Deferred[Picture] = self.picture
        return found

    def stop(self) -> Deferred[None]:
        self.stops += 1
        return self.stopping or succeed(None)


class ProtocolTests(ServiceCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.source = Scripted()
        self.service = CameraService(self.clock, {"back": self.source})

        def at_once(function: Any, *arguments: Any) -> Deferred[Any]:
            return succeed(function(*arguments))

        self.patch(camera_module, "deferToThread", at_once)
        verifyObject(IPipeService, self.service)
        verifyObject(ICameraSource, self.source)

    def device(self) -> Guest:
        return Guest(self.service, "name=anbox-back")

    def started(self) -> Guest:
        guest = self.device()
        guest.feed(b"connect\0start dim=176x144 pix=842093913\0")
        self.assertEqual(guest.received(), b"00000003ok\x0000000003ok\0")
        return guest

    def test_vectors_at_every_cut(self) -> None:
        for vector in VECTORS["dialogues"]:
            data = "".join(query + "\0" for query in vector["guest"]).encode()
            expected = vector["host"].encode("latin-1")
            for cut in range(len(data)):
                sources: dict[str, Any] = {name: Scripted() for name in vector.get("cameras", ["back"])}
                guest = Guest(CameraService(self.clock, sources), vector["argument"])
                guest.feed(data[:cut])
                guest.feed(data[cut:])
                self.assertEqual(guest.received(), expected, vector["name"])
                self.assertFalse(guest.closed)
                guest.leave()

    def test_a_frame_is_header_and_bytes_in_one_write(self) -> None:
        guest = self.started()
        picture = colour_bars(176, 144, 0)
        for query, expected in (
            (b"video=38016 preview=0", to_video(picture, "YU12")),
            (b"video=0 preview=101376", to_preview(picture)),
            (b"video=38016 preview=101376", to_video(picture, "YU12") + to_preview(picture)),
        ):
            self.source.picture = succeed(picture)
            guest.feed(b"frame " + query + b"\0")
            self.assertEqual(len(guest.transport.writes), 1)
            data = guest.received()
            self.assertEqual(data[:8], b"%08x" % (3 + len(expected)))
            self.assertEqual(data[8:11], b"ok:")
            self.assertEqual(data[11:], expected)
        self.assertEqual(self.service.cameras["back"].frames, 3)

    def test_white_balance_and_exposure(self) -> None:
        guest = self.started()

        def first_pixel(words: bytes, grey: int = 100) -> tuple[int, ...]:
            plane = bytes([grey]) * (176 * 144)
            self.source.picture = succeed(Picture(176, 144, plane, plane, plane))
            guest.feed(b"frame video=0 preview=101376 " + words + b"\0")
            return tuple(guest.received()[11:15])

        self.assertEqual(first_pixel(b"whiteb=1.0,1.0,1.0 expcomp=1.0"), (100, 100, 100, 255))
        self.assertEqual(first_pixel(b"whiteb=0.5,1,2"), (50, 100, 200, 255))
        self.assertEqual(first_pixel(b"expcomp=2.0"), (200, 200, 200, 255))
        self.assertEqual(first_pixel(b"whiteb=0.5,1,2 expcomp=2"), (100, 200, 255, 255))
        for nonsense in (b"whiteb=1,2", b"whiteb=a,b,c", b"expcomp=nan", b"whiteb=inf,1,1", b"expcomp="):
            self.assertEqual(first_pixel(nonsense), (100, 100, 100, 255))
        self.assertEqual(first_pixel(b"expcomp=-3"), (0, 0, 0, 255))

    def test_a_camera_has_one_user_and_is_free_when_he_is_gone(self) -> None:
        first, second = self.started(), self.device()
        second.feed(b"connect\0")
        self.assertEqual(second.received(), b"00000021ko:Unable to open camera device.\0")
        self.assertEqual(
            self.service.cameras["back"].describe()["capture"], {"size": "176x144", "format": "YU12"}
        )
        first.leave()
        self.assertEqual(self.source.stops, 1)
        second.feed(b"connect\0disconnect\0")
        self.assertEqual(second.received(), b"00000003ok\0" * 2)
        self.assertFalse(self.service.cameras["back"].describe()["connected"])

    def test_no_such_camera_is_refused_with_a_reason(self) -> None:
        for argument in ("name=webcam0", "anbox-back", "name=", "name=anbox-front"):
            self.assertIsNone(self.service.open(argument, GUEST))
            self.assertIn("there is no camera", self.warnings.pop())

    def test_a_source_that_fails(self) -> None:
        self.source.starting = fail(CameraError("no film"))
        guest = self.device()
        guest.feed(b"connect\0start dim=176x144 pix=842093913\0")
        self.assertEqual(guest.received()[11:], b"0000001bko:Cannot start the camera\0")
        self.assertIn("no film", self.logged[-1])
        self.source.starting = Deferred()
        guest.feed(b"start dim=176x144 pix=842093913\0stop\0")
        self.assertEqual(guest.received(), b"")
        self.clock.advance(camera_module.START_TIMEOUT_S)
        self.assertEqual(
            guest.received(), b"0000001bko:Cannot start the camera\x0000000019ok:Camera is not started\0"
        )

    def test_a_frame_that_does_not_come(self) -> None:
        guest = self.started()
        self.source.picture = Deferred()
        guest.feed(b"frame video=38016 preview=0\0")
        self.clock.advance(1.9)
        self.assertEqual(guest.received(), b"")
        self.clock.advance(0.1)
        self.assertEqual(guest.received(), b"00000030ko:Unable to obtain video frame from the camera\0")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_guest_that_leaves_while_the_source_starts_or_a_frame_is_made(self) -> None:
        self.source.starting = Deferred()
        guest = self.device()
        guest.feed(b"connect\0start dim=176x144 pix=842093913\0")
        guest.leave()
        self.source.starting.callback(self.source)
        self.assertEqual(self.source.stops, 1)
        self.source.starting = succeed(self.source)
        guest = self.started()
        waiting = self.source.picture = Deferred()
        guest.feed(b"frame video=38016 preview=0\0")
        guest.leave()
        waiting.callback(colour_bars(176, 144, 0))
        self.assertEqual((guest.received(), self.source.stops, self.clock.getDelayedCalls()), (b"", 2, []))

    def test_the_end_of_the_service_waits_for_sources(self) -> None:
        guest = self.started()
        self.source.stopping = Deferred()
        guest.leave()
        done = self.service.stop()
        self.assertNoResult(done)
        self.source.stopping.callback(None)
        self.successResultOf(done)
        self.successResultOf(self.service.stop())

    def test_a_bug_ends_the_connection_with_a_reason(self) -> None:
        guest = self.device()
        self.patch(self.source, "start", lambda width, height: 1 / 0)
        guest.feed(b"connect\0start dim=176x144 pix=842093913\0")
        self.assertTrue(guest.closed)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_floods_and_garbage(self) -> None:
        other = self.started()
        for flood, words in (
            (b"x" * MAX_QUERY_BYTES, "no NUL within 256 bytes"),
            (b"list\0" + b"y" * 300, "no NUL within 256 bytes"),
            (b"z\0" * MAX_PENDING_BYTES, "more than 4096 bytes of queries"),
        ):
            for argument in ("", "name=anbox-back"):
                guest = Guest(self.service, argument)
                guest.feed(flood)
                self.assertTrue(guest.closed, flood[:10])
                self.assertIn(words, self.warnings.pop())
        guest = Guest(self.service)
        guest.feed(b"\0" * MAX_PENDING_BYTES)  # many answers in one turn
        self.assertEqual(guest.received(), b"00000018ko:Invalid query format\0" * MAX_PENDING_BYTES)
        self.assertFalse(other.closed)

    def test_frames_are_not_queued_for_a_guest_that_does_not_read(self) -> None:
        guest = self.started()
        guest.stop_reading()
        guest.feed(b"frame video=38016 preview=0\0" * 50)
        self.assertEqual(guest.received(), b"")
        guest.read_on()
        self.assertTrue(guest.received())

    @given(st.binary(max_size=600), st.sampled_from(["", "name=anbox-back"]))
    def test_no_bytes_break_the_service(self, data: bytes, argument: str) -> None:
        source = Scripted()
        guest = Guest(CameraService(Clock(), {"back": source}), argument)
        guest.feed(b"connect\0" + data)
        guest.leave()

    @given(st.lists(st.binary(max_size=20).filter(lambda b: 0 not in b), max_size=8), st.data())
    def test_queries_do_not_depend_on_cuts(self, texts: list[bytes], data: st.DataObject) -> None:
        stream = b"".join(text + b"\0" for text in texts)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
        decoder, found = QueryDecoder(), []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            decoder.receive_data(stream[start:end])
            while (query := decoder.next_query()) is not None:
                found.append(query.name)
        assert found == [text.decode("latin-1").partition(" ")[0] for text in texts]

    def test_a_decoder_says_what_is_too_much(self) -> None:
        with self.assertRaises(QueryError):
            QueryDecoder().receive_data(b"\0" * (MAX_PENDING_BYTES + 1))


class PictureTests(SynchronousTestCase):
    def test_colours_become_the_right_brightness_and_chroma(self) -> None:
        # ITU-R BT.601, limited range: the values of broadcast's 100 % bars
        for (red, green, blue), (y, u, v) in (
            ((255, 255, 255), (235, 128, 128)),
            ((0, 0, 0), (16, 128, 128)),
            ((255, 0, 0), (82, 90, 240)),
            ((0, 255, 0), (145, 54, 34)),
            ((0, 0, 255), (41, 240, 110)),
            ((255, 255, 0), (210, 16, 146)),
        ):
            picture = Picture(2, 2, *(bytes([c]) * 4 for c in (red, green, blue)))
            data = to_video(picture, "YU12")
            self.assertEqual(len(data), 6)
            for got, wanted in zip((data[0], data[4], data[5]), (y, u, v), strict=True):
                self.assertLessEqual(abs(got - wanted), 2, (red, green, blue))
            self.assertEqual(to_preview(picture), bytes([red, green, blue, 255]) * 4)

    def test_no_colour_carries_into_its_neighbour(self) -> None:
        # all combinations of extremes and some between: a carry would change the next byte
        values = [0, 1, 127, 128, 254, 255]
        pixels = [(r, g, b) for r in values for g in values for b in values]
        planes = [bytes(pixel[colour] for pixel in pixels for _ in range(4)) for colour in range(3)]
        wide = Picture(len(pixels) * 2, 2, *planes)
        wide = Picture(
            len(pixels) * 2, 2, *(bytes(p[c] for p in pixels for _ in (0, 1)) * 2 for c in range(3))
        )
        data = to_video(wide, "YU12")
        for index, pixel in enumerate(pixels):
            alone = to_video(Picture(2, 2, *(bytes([c]) * 4 for c in pixel)), "YU12")
            self.assertEqual(data[2 * index], alone[0])
            self.assertEqual(data[4 * len(pixels) + index], alone[4])
            self.assertEqual(data[5 * len(pixels) + index], alone[5])

    def test_the_four_formats_hold_the_same(self) -> None:
        picture = colour_bars(16, 8, 0.3)
        data = {name: to_video(picture, name) for name in FORMATS.values()}
        y, u, v = data["YU12"][:128], data["YU12"][128:160], data["YU12"][160:]
        self.assertEqual(data["YV12"], y + v + u)
        self.assertEqual(data["NV12"], y + bytes(b for pair in zip(u, v, strict=True) for b in pair))
        self.assertEqual(data["NV21"], y + bytes(b for pair in zip(v, u, strict=True) for b in pair))
        self.assertEqual(fourcc("YU12"), 842093913)

    def test_the_bars_move_and_come_round(self) -> None:
        start = colour_bars(640, 480, 0)
        self.assertEqual([(p[320 * 0 + 640], p[640 + 639]) for p in start.planes], [(255, 0)] * 3)
        self.assertNotEqual(start, colour_bars(640, 480, 1 / 30))
        self.assertEqual(start, colour_bars(640, 480, 8))
        # one bar a second
        self.assertEqual([p[640 * 100] for p in colour_bars(640, 480, 1.0).planes], [255, 255, 0])

    def test_netpbm(self) -> None:
        picture = read_netpbm(b"P6 # red, green\n# next\n2 1\n255\n\xff\0\0\0\xff\0trailing")
        self.assertEqual(picture, Picture(2, 1, b"\xff\0", b"\0\xff", b"\0\0"))
        self.assertEqual(read_netpbm(b"P5\n2 1 255 \x01\x02").planes, (b"\x01\x02",) * 3)
        for data in (
            b"",
            b"P6",
            b"P6 2 1 255",
            b"P6 2 1 255\nabc",
            b"P3 1 1 255\n1 1 1",
            b"P6 0 1 255\n",
            b"P6 99999 99999 255\n",
            b"P6 1 1 65535\n123456",
            b"P6 -1 1 255\n",
            b"P6 " + b"1" * 5000 + b" 1 255\n",
            b"P6 #",
            b"\x89PNG",
        ):
            with self.assertRaises(CameraError, msg=data[:20]):
                read_netpbm(data)

    @given(st.binary(max_size=40))
    def test_any_bytes_are_a_picture_or_an_error(self, data: bytes) -> None:
        try:
            read_netpbm(b"P6" + data)
        except CameraError:
            pass

    def test_a_picture_fills_the_frame(self) -> None:
        # left half black, right half white, twice as wide: the middle stays
        row = b"\0" * 40 + b"\xff" * 40
        wide = Picture(80, 20, *[row * 20] * 3)
        shown = cover(wide, 40, 20)
        self.assertEqual(shown.red, (b"\0" * 20 + b"\xff" * 20) * 20)
        self.assertIs(cover(shown, 40, 20), shown)
        self.assertEqual(cover(wide, 160, 40).red[:160], b"\0" * 80 + b"\xff" * 80)
        self.assertEqual(len(cover(wide, 1, 7).green), 7)


class PaceTests(SynchronousTestCase):
    def test_the_pattern_keeps_its_pace_whoever_asks(self) -> None:
        clock = Clock()
        stream = self.successResultOf(TestPattern(clock).start(176, 144))
        verifyObject(ICameraStream, stream)
        self.assertEqual(self.successResultOf(stream.next_picture()), colour_bars(176, 144, 0))
        early = stream.next_picture()
        self.assertNoResult(early)
        clock.advance(1 / 30 + 1e-6)
        self.assertEqual(self.successResultOf(early), colour_bars(176, 144, 1 / 30))
        clock.advance(1.0)
        self.assertEqual(self.successResultOf(stream.next_picture()), colour_bars(176, 144, 31 / 30))
        self.assertNoResult(waiting := stream.next_picture())
        self.successResultOf(stream.stop())
        self.failureResultOf(waiting, CameraError)
        self.failureResultOf(stream.next_picture(), CameraError)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_names_of_sources(self) -> None:
        self.assertEqual(parse_source("image:/a:b"), ("image", "/a:b"))
        self.assertEqual(parse_source("none"), ("none", ""))
        for text in ("", "image:", "image", "video", "webcam0", "none:x", "test-pattern:1"):
            with self.assertRaises(ConfigError):
                parse_source(text)
        self.assertIsNone(make_source(Clock(), "none"))
        self.assertIsInstance(make_source(Clock(), "test-pattern"), TestPattern)
        with self.assertRaises(ConfigError):
            make_source(Clock(), "image:/nonexistent")
        self.patch(shutil, "which", lambda name: None)
        with self.assertRaises(ConfigError):
            make_source(Clock(), f"video:{__file__}")
        self.failureResultOf(Video(Clock(), __file__).start(176, 144), CameraError)


def png(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """A PNG of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    rows = (b"\0" + bytes(colour) * width) * height
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class FileTests(TestCase):
    """Image files and videos, with the reactor's own clock and threads."""

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="cam-")
        self.addCleanup(shutil.rmtree, self.directory)

    def write(self, name: str, data: bytes) -> str:
        path = os.path.join(self.directory, name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    async def test_an_image_file(self) -> None:
        path = self.write("a.ppm", b"P6 2 2 255\n" + b"\x0a\x14\x1e" * 4)
        source = make_source(reactor, f"image:{path}")
        assert source is not None
        verifyObject(ICameraSource, source)
        stream = await source.start(176, 144)
        for _ in range(2):
            picture = await stream.next_picture()
            self.assertEqual((picture.width, picture.red[:3], picture.blue[-1:]), (176, b"\x0a" * 3, b"\x1e"))
        await stream.stop()

    async def test_pillow_reads_the_others(self) -> None:
        path = self.write("a.png", png(300, 10, (1, 2, 3)))
        stream = await ImageFiles(reactor, path).start(176, 144)
        picture = await stream.next_picture()
        self.assertEqual([len(plane) for plane in picture.planes], [176 * 144] * 3)
        self.assertEqual([plane[5000] for plane in picture.planes], [1, 2, 3])
        await stream.stop()

    async def test_a_directory_is_shown_in_turn(self) -> None:
        clock = Clock()
        self.write("b.pgm", b"P5 1 1 255\n\xc8")
        self.write("a.pgm", b"P5 1 1 255\n\x64")
        self.write(".hidden", b"no image")
        stream = await ImageFiles(clock, self.directory).start(176, 144)
        seen = []
        for at in (0, 0.5, 1.2, 2.1):
            clock.advance(at - clock.seconds())
            seen.append((await stream.next_picture()).red[0])
        self.assertEqual(seen, [0x64, 0x64, 0xC8, 0x64])
        await stream.stop()

    async def test_files_that_are_no_images(self) -> None:
        os.mkdir(os.path.join(self.directory, "empty"))
        broken = png(9, 9, (1, 2, 3))
        for path in (
            os.path.join(self.directory, "empty"),
            os.path.join(self.directory, "none"),
            self.write("text.png", b"hello"),
            self.write("cut.png", broken[:50]),
            self.write("bad.png", broken.replace(b"IDAT", b"IDAX")),
        ):
            with self.assertRaises(CameraError):
                stream = await ImageFiles(reactor, path).start(176, 144)
                try:
                    await stream.next_picture()
                finally:
                    await stream.stop()

    def video(self) -> str:
        """Two seconds of a green screen, by the real ffmpeg."""
        path = os.path.join(self.directory, "green.avi")
        lavfi = "color=c=0x00c000:s=64x64:r=15:d=2"
        subprocess.run(
            [need_tool("ffmpeg"), "-v", "error", "-f", "lavfi", "-i", lavfi, "-c:v", "rawvideo", path],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return path

    async def test_a_video_through_ffmpeg(self) -> None:
        source = make_source(reactor, f"video:{self.video()}")
        assert source is not None
        verifyObject(ICameraSource, source)
        stream = await source.start(176, 144)
        verifyObject(ICameraStream, stream)
        for _ in range(5):
            picture = await stream.next_picture()
            red, green, blue = (plane[3000] for plane in picture.planes)
            self.assertTrue(red < 12 and 180 < green < 204 and blue < 12, (red, green, blue))
        waiting = stream.next_picture()
        pid = stream.transport.pid  # type: ignore[attr-defined]
        await stream.stop()
        await stream.stop()
        with self.assertRaises(CameraError):
            await waiting
            await stream.next_picture()
        with self.assertRaises(ProcessLookupError):
            os.kill(pid, 0)

    async def test_what_ffmpeg_cannot_read(self) -> None:
        need_tool("ffmpeg")
        with self.assertRaises(CameraError) as caught:
            await Video(reactor, self.write("no.avi", b"nothing")).start(176, 144)
        self.assertIn("no.avi: ffmpeg ended:", str(caught.exception))

    async def test_ffmpeg_that_dies(self) -> None:
        stream = await Video(reactor, self.video()).start(176, 144)
        await stream.next_picture()
        waiting = stream.next_picture()
        stream.transport.signalProcess("KILL")  # type: ignore[attr-defined]
        with self.assertRaises(CameraError):
            # one may be on the way
            for _ in range(1000):
                await waiting
                waiting = stream.next_picture()
        await stream.stop()
