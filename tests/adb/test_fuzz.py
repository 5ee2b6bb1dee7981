"""Generated and mutated input for each codec and each state: no exception but ours, no growth.

``ANBOX_TW_FUZZ`` is the number of inputs for each; a few thousand unless set.
"""

from __future__ import annotations

import os
import random
import tracemalloc

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb import _shell
from anbox_tw.adb import _wire as wire
from anbox_tw.adb._jdwp import ProcessInfo, parse_hello
from anbox_tw.adb._state import LocalProtocolError
from anbox_tw.adb.banner import Banner
from anbox_tw.adb.daemon._syncengine import SyncEngine
from anbox_tw.adb.daemon.commands import split_command
from anbox_tw.adb.daemon.files import RootedTree
from anbox_tw.adb.keys import AdbKeyError, PublicKey
from anbox_tw.adb.pairing import PairingFailed, PairingSession
from anbox_tw.errors import PeerError
from tests.adb.test_state import INPUTS, MAKERS
from tests.adb.test_sync_engine import QUIT, MemoryPipe, content, request

COUNT = int(os.environ.get("ANBOX_TW_FUZZ", "3000"))
SEED = int(os.environ.get("ANBOX_TW_FUZZ_SEED", "1"))


class Mutator:
    def __init__(self, seeds: list[bytes]) -> None:
        self.random = random.Random(SEED)
        self.seeds = seeds

    def next(self) -> bytes:
        dice = self.random
        data = bytearray(b"".join(dice.choice(self.seeds) for _ in range(dice.randint(1, 5))))
        for _ in range(dice.choice((0, 0, 1, 1, 2, 8))):
            place = dice.randrange(len(data) or 1)
            kind = dice.randrange(5)
            if kind == 0 and data:
                data[place % len(data)] = dice.randrange(256)
            elif kind == 1:
                del data[place : place + dice.randint(1, 30)]
            elif kind == 2:
                data[place:place] = dice.randbytes(dice.randint(1, 30))
            elif kind == 3:
                data[place : place + 4] = dice.choice((0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 65536)).to_bytes(
                    4, "little"
                )
            else:
                data = data[:place]
        return bytes(data)


def packets() -> list[bytes]:
    found = list(INPUTS.values())
    for command, (one, other) in (
        (c, pair) for c in wire.COMMAND_NAMES for pair in ((1, 1), (7, 1), (1, 7), (0, 1), (7, 0))
    ):
        for payload in (b"", b"x" * 30, bytes(4), b"\0\0\0\x02"):
            found.append(wire.encode_header(command, one, other, len(payload)) + payload)
    return found


class FuzzTests(SynchronousTestCase):
    def test_connections(self) -> None:
        mutator = Mutator(packets())
        dice = mutator.random
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = 0
        for index in range(COUNT):
            make, phase = MAKERS[index % len(MAKERS)]
            connection = make(phase)
            data = mutator.next()
            cut = dice.choice((1 << 20, 24, 7))
            for start in range(0, len(data), cut):
                connection.receive_data(data[start : start + cut])
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
            if index == COUNT // 10:
                before = tracemalloc.get_traced_memory()[0]
        self.assertLess(tracemalloc.get_traced_memory()[0] - before, 2 << 20)

    def test_shell_packets(self) -> None:
        mutator = Mutator([_shell.encode(kind, b"x" * size) for kind in range(7) for size in (0, 1, 40)])
        for _ in range(COUNT):
            data = mutator.next()
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
        for _ in range(COUNT):
            data = mutator.next()
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

    def test_pairing(self) -> None:
        host = PairingSession(host=True, password=b"x", info_kind=0, info=b"key")
        mutator = Mutator(
            [host.start(), b"\x01\x01\0\0\0\x10" + bytes(16), b"\x01\x00\0\0\0\x20" + bytes(32)]
        )
        for _ in range(max(COUNT // 100, 20)):
            session = PairingSession(host=False, password=b"x", info_kind=1, info=b"guid")
            try:
                session.receive_data(mutator.next())
            except (PeerError, PairingFailed):
                pass

    def test_sync(self) -> None:
        root = os.path.abspath(self.mktemp())
        os.makedirs(f"{root}/tmp")
        with open(f"{root}/tmp/file", "wb") as file:
            file.write(b"content")
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
        for _ in range(max(COUNT // 3, 100)):
            pipe = MemoryPipe([mutator.next(), mutator.next()])
            SyncEngine(pipe, RootedTree(root)).run()
        self.assertEqual(set(os.listdir(os.path.dirname(root))), outside)
