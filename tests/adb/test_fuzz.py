"""Generated and mutated input for each codec and each state of a connection: no exception but ours, no growth."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb import _shell
from anbox_tw.adb._jdwp import ProcessInfo, parse_hello
from anbox_tw.adb._state import LocalProtocolError
from anbox_tw.adb._wire import Packet, PacketReader
from anbox_tw.adb.banner import Banner
from anbox_tw.adb.daemon import compression
from anbox_tw.adb.daemon._syncengine import SyncEngine
from anbox_tw.adb.daemon.commands import split_command
from anbox_tw.adb.daemon.files import RootedTree
from anbox_tw.adb.keys import AdbKeyError, PublicKey
from anbox_tw.adb.pairing import PairingFailed, PairingSession
from anbox_tw.adb.server._framing import BadRequest, RequestReader
from anbox_tw.adb.server._proto import embedded, message
from anbox_tw.adb.server._targets import parse_host_request, parse_transport_request
from anbox_tw.adb.server.errors import RequestFailed
from anbox_tw.adb.server.links import split_address
from anbox_tw.adb.server.specs import parse_spec
from anbox_tw.errors import PeerError
from tests.adb.fuzz import COUNT, Growth, Mutator, packets
from tests.adb.test_state import MAKERS
from tests.adb.test_sync_engine import QUIT, MemoryPipe, content, request


def _read_fed(data: bytes) -> list[Packet | str]:
    reader = PacketReader(4096)
    reader.feed(data)
    return list(_packets(reader))


def _read_placed(data: bytes) -> list[Packet | str]:
    reader = PacketReader(4096)
    found: list[Packet | str] = []
    while data and (not found or isinstance(found[-1], Packet)):
        place = reader.get_buffer()
        count = min(len(place), len(data), 50)
        place[:count] = data[:count]
        data = data[count:]
        reader.buffer_updated(count)
        found += _packets(reader)
    return found


def _packets(reader: PacketReader) -> Iterator[Packet | str]:
    try:
        while (packet := reader.next_packet()) is not None:
            yield packet
    except PeerError as error:
        yield error.cause


class FuzzTests(SynchronousTestCase):
    def inputs(self, mutator: Mutator) -> Iterator[bytes]:
        """``COUNT`` inputs, after which nothing may have grown."""
        growth = Growth(self, COUNT)
        for index in range(COUNT):
            yield mutator.next()
            growth.look(index)
        growth.check()

    def test_connections(self) -> None:
        mutator = Mutator(packets())
        dice = mutator.random
        growth = Growth(self, COUNT * len(MAKERS))
        for index in range(COUNT * len(MAKERS)):
            make, phase = MAKERS[index % len(MAKERS)]
            connection = make(phase)
            for piece in mutator.cut(mutator.next()):
                connection.receive_data(piece)
                for event in connection.events():
                    local = getattr(event, "stream", 0)
                    calls = (
                        lambda: connection.accept(),
                        lambda: connection.challenge(bytes(20)),
                        lambda local=local: connection.accept_stream(local),
                        lambda local=local: connection.refuse_stream(local),
                        lambda local=local: connection.send_data(local, b"answer"),
                        lambda local=local: connection.acknowledge(local, 3),
                        lambda local=local: connection.close_stream(local),
                        lambda: connection.open_stream(b"x"),
                        lambda: connection.send_public_key(b"key"),
                    )
                    try:
                        dice.choice(calls)()
                    except LocalProtocolError:
                        pass
            self.assertGreaterEqual(connection.unacked, 0)
            self.assertEqual(connection.unacked, sum(size for _, size in connection.unacknowledged()))
            connection.data_to_send()
            growth.look(index)
        growth.check()

    def test_shell_packets(self) -> None:
        mutator = Mutator([_shell.encode(kind, b"x" * size) for kind in range(7) for size in (0, 1, 40)])
        for data in self.inputs(mutator):
            reader = _shell.ShellReader()
            try:
                found = reader.feed(data)
            except PeerError:
                continue
            self.assertLessEqual(sum(len(piece) for _, piece in found), len(data))

    def test_banners_keys_and_hellos(self) -> None:
        mutator = Mutator(
            [
                b"device::features=a,b;ro.product.name=x;",
                b"QAAAAA" * 90 + b" me@here\0",
                b"03e9",
                ProcessInfo(5, True, True, "arm64", 1, "a", ("b",), True, 7).encode(),
                bytes.fromhex("ec0300000000000001000000050000006172") + b"m64" + bytes(11),
            ]
        )
        for data in self.inputs(mutator):
            Banner.parse(data)
            split_command(data.decode("latin-1"))
            try:
                parse_hello(data)
            except PeerError:
                pass
            try:
                PublicKey.from_text(data.decode("latin-1"))
            except AdbKeyError:
                pass

    def test_packet_reader(self) -> None:
        """Fed or received into place: the same packets, or the same end."""
        mutator = Mutator(packets())
        for data in self.inputs(mutator):
            self.assertEqual(_read_fed(data), _read_placed(data))

    def test_pairing(self) -> None:
        """The exchange costs 10 ms of arithmetic, so there are fewer of them; what follows it is tried in full."""
        host = PairingSession(host=True, password=b"x", info_kind=0, info=b"key")
        point = host.start()
        mutator = Mutator([point, b"\x01\x01\0\0\0\x10" + bytes(16), b"\x01\x00\0\0\0\x20" + bytes(32)])
        for _ in range(max(COUNT // 100, 20)):
            session = PairingSession(host=False, password=b"x", info_kind=1, info=b"guid")
            try:
                session.receive_data(mutator.next())
            except (PeerError, PairingFailed):
                pass
        fresh = PairingSession(host=False, password=b"x", info_kind=1, info=b"guid")
        agreed = copy.copy(fresh)
        reply = agreed.receive_data(point)
        info = host.receive_data(fresh.start() + reply)
        mutator = Mutator([info, *mutator.seeds[1:]])
        for data in self.inputs(mutator):
            session = copy.copy(agreed)
            session._cipher = copy.copy(agreed._cipher)
            try:
                for piece in mutator.cut(data):
                    session.receive_data(piece)
            except (PeerError, PairingFailed):
                pass
            self.assertIn(session.peer, (None, (0, "key")))

    def test_server_requests(self) -> None:
        words = (
            "host:version",
            "host-serial:localhost:5555:get-state",
            "host-serial:[::1]:5555:get-state",
            "host-serial:tcp:a:1:x",
            "host-transport-id:7:features",
            "host:tport:serial:x",
            "host:transport-id:7",
            "tcp:5",
            "localabstract:x",
            "emu:5554,5555",
        )
        mutator = Mutator([b"%04x" % len(word) + word.encode() for word in words] + [b"0000", b"ffff"])
        for data in self.inputs(mutator):
            reader = RequestReader()
            try:
                for piece in mutator.cut(data):
                    request = reader.feed(piece)
                    if request is None:
                        continue
                    parsed = parse_host_request(request)
                    command = request if parsed is None else parsed[1]
                    parse_transport_request(command)
                    for parse in (parse_spec, split_address):
                        try:
                            parse(command)
                        except RequestFailed:
                            pass
                    break
            except BadRequest:
                pass

    def test_known_hosts_and_windows(self) -> None:
        mutator = Mutator(
            [message([(1, message([(1, "adb-x-y")]))]), b"24x80,0x0\0", b"\x08\x01", b"\x09" + bytes(8)]
        )
        for data in self.inputs(mutator):
            for host in embedded(data, 1):
                for guid in embedded(host, 1):
                    self.assertIn(guid, data)
            _shell.parse_window_size(data)

    def test_compressed_data(self) -> None:
        for name in compression.available():
            worker = compression.compressor(name)
            whole = worker.compress(b"some text " * 500) + worker.flush()
            mutator = Mutator([whole, whole[:40], whole[40:]])
            for data in self.inputs(mutator):
                out = 0
                try:
                    for piece in compression.decompressor(name).decompress(memoryview(data)):
                        out += len(piece)
                except Exception as error:
                    # Each library has errors of its own; the engine turns them all into one refusal.
                    self.assertNotIsInstance(error, MemoryError)
                self.assertLess(out, 64 << 20)

    def test_sync(self) -> None:
        root = os.path.abspath(self.mktemp())
        os.makedirs(f"{root}/tmp")
        outside = set(os.listdir(os.path.dirname(root)))
        seeds = [
            *(
                request(kind, path)
                for kind in (b"STAT", b"STA2", b"LST2", b"LIST", b"LIS2", b"RECV")
                for path in ("/tmp", "/tmp/file", "../x")
            ),
            *(
                request(b"SEND", f"/tmp/f{index},{mode}", content(b"data"))
                for index, mode in enumerate((33188, 41471, 0))
            ),
            *(
                request(
                    b"SND2",
                    "/tmp/g",
                    b"SND2" + bytes([0xA4, 0x81, 0, 0, flag, 0, 0, 0]) + content(b"(\xb5/\xfd"),
                )
                for flag in (0, 1, 2, 4, 3)
            ),
            *(request(b"RCV2", "/tmp/file", b"RCV2" + bytes([flag, 0, 0, 0])) for flag in (0, 1, 2, 4, 9)),
            QUIT,
        ]
        mutator = Mutator(seeds)
        for index, data in enumerate(self.inputs(mutator)):
            pipe = MemoryPipe([data, mutator.next()])
            SyncEngine(pipe, RootedTree(root)).run()
            if not index % 1000:
                shutil.rmtree(f"{root}/tmp")
                os.makedirs(f"{root}/tmp")
                with open(f"{root}/tmp/file", "wb") as file:
                    file.write(b"content")
        self.assertEqual(set(os.listdir(os.path.dirname(root))), outside)
