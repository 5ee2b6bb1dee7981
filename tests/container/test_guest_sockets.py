"""Sockets inside a container: the wire, the helper, its gate and the manager's listener."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import tempfile
import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from anbox_tw.container.guest_sockets import _wire as wire
from anbox_tw.container.guest_sockets._helper import Helper, Place
from anbox_tw.container.guest_sockets.gate import READY_TIMEOUT_S, GuestGate
from anbox_tw.container.guest_sockets.service import HELLO_TIMEOUT_S, guest_socket_path
from anbox_tw.errors import NotRunning, PermissionRefused
from anbox_tw.interfaces import IGuestGate
from tests.container.inside_us import InsideUs
from tests.support import REPOSITORY

reactor: Any = global_reactor
VECTORS = json.loads((REPOSITORY / "protocols/guest-sockets/vectors/messages.json").read_text())["messages"]


class WireTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        for vector in VECTORS:
            data = bytes.fromhex(vector["hex"])
            if vector["message"] == "request":
                text = bytes.fromhex(vector["text_hex"])
                self.assertEqual(wire.encode_request(vector["id"], vector["kind"], text), data)
                self.assertEqual(
                    list(wire.Requests().receive_data(data)), [(vector["id"], vector["kind"], text)]
                )
            else:
                self.assertEqual(wire.encode_reply(vector["id"], vector["errno"]), data)
                self.assertEqual(list(wire.Replies().receive_data(data)), [(vector["id"], vector["errno"])])

    def test_every_cut(self) -> None:
        for message, kind in (("request", wire.Requests), ("reply", wire.Replies)):
            stream = b"".join(bytes.fromhex(v["hex"]) for v in VECTORS if v["message"] == message)
            whole = list(kind().receive_data(stream))
            self.assertEqual(len(whole), sum(v["message"] == message for v in VECTORS))
            reader = kind()
            self.assertEqual([m for byte in stream for m in reader.receive_data(bytes([byte]))], whole)
            for cut in range(len(stream)):
                reader = kind()
                both = [*reader.receive_data(stream[:cut]), *reader.receive_data(stream[cut:])]
                self.assertEqual(both, whole)

    @given(st.sampled_from(["127.0.0.1", "::1", "fe80::1%eth0"]), st.integers(0, 65535))
    def test_addresses(self, address: str, port: int) -> None:
        self.assertEqual(wire.decode_address(wire.encode_address(address, port)), (address, port))

    def test_what_is_no_message(self) -> None:
        self.assertRaises(wire.MessageError, wire.encode_request, 1, 4, b"x" * 1025)
        header = wire.encode_request(1, 4, b"")[:5] + (1025).to_bytes(2, "big")
        self.assertRaises(wire.MessageError, list, wire.Requests().receive_data(header))
        for text in (b"", b"\0\1", b"\0\1\xff"):
            self.assertRaises(wire.MessageError, wire.decode_address, text)


class PlaceTests(SynchronousTestCase):
    """What the helper opens, in this process."""

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="gs-")
        self.root = os.open(self.directory, os.O_PATH)
        self.addCleanup(os.close, self.root)

    def ask(self, kind: int, text: bytes, place: Place | None = None) -> int:
        number, opened = (place or Place()).open(wire.Request(1, kind, text))
        self.assertEqual(opened is not None, wire.has_descriptor(number))
        if opened is not None:
            self.assertFalse(opened.getblocking())
            self.assertFalse(opened.get_inheritable())
            opened.close()
        return number

    def listen(self, address: Any, family: int = socket.AF_UNIX, backlog: int = 64) -> socket.socket:
        listening = socket.socket(family, socket.SOCK_STREAM)
        self.addCleanup(listening.close)
        listening.bind(address)
        listening.listen(backlog)
        return listening

    def test_streams(self) -> None:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            port = self.listen((address, 0), family).getsockname()[1]
            self.assertEqual(self.ask(wire.Kind.TCP, wire.encode_address(address, port)), 0)
        name = os.urandom(8).hex()
        self.listen(f"\0{name}")
        self.assertEqual(self.ask(wire.Kind.ABSTRACT, name.encode()), 0)
        self.assertEqual(self.ask(wire.Kind.ABSTRACT, b"nobody " + name.encode()), errno.ECONNREFUSED)

    def test_refused_at_once(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            text = wire.encode_address("127.0.0.1", probe.getsockname()[1])
            self.assertEqual(self.ask(wire.Kind.TCP, text), errno.ECONNREFUSED)
        self.assertEqual(self.ask(wire.Kind.UDP, text), 0)

    def test_paths_stay_below_the_root(self) -> None:
        self.listen(f"{self.directory}/there")
        os.mkdir(f"{self.directory}/etc")
        os.symlink("/there", f"{self.directory}/etc/absolute")
        os.symlink("../../../../there", f"{self.directory}/etc/relative")
        os.symlink(f"{self.directory}/there", f"{self.directory}/etc/outside")
        place = Place(self.root)
        for path in (b"/there", b"/etc/absolute", b"/etc/relative", b"/../../there"):
            self.assertEqual(self.ask(wire.Kind.PATH, path, place), 0, path)
        # on the host it would lead to the socket
        self.assertEqual(self.ask(wire.Kind.PATH, b"/etc/outside"), errno.ENOENT)
        self.assertEqual(self.ask(wire.Kind.PATH, b"/etc/outside", place), errno.ENOENT)
        self.assertEqual(self.ask(wire.Kind.PATH, b"/etc", place), errno.ECONNREFUSED)

    def test_a_prefix_stands_for_a_root(self) -> None:
        # longer than the kernel takes in one address
        deep = f"{self.directory}/{'d' * 120}"
        os.mkdir(deep)
        self.listen(f"{self.directory}/there")
        os.rename(f"{self.directory}/there", f"{deep}/there")
        self.assertEqual(self.ask(wire.Kind.PATH, b"/there", Place(prefix=os.fsencode(deep))), 0)

    def test_a_full_backlog(self) -> None:
        listening = self.listen(f"{self.directory}/full", backlog=1)
        held = []
        place = Place(self.root)
        while True:
            number, opened = place.open(wire.Request(1, wire.Kind.PATH, b"/full"))
            if opened is None:
                break
            held.append(opened)
        self.assertEqual(number, errno.EAGAIN)
        listening.accept()[0].close()
        self.assertEqual(self.ask(wire.Kind.PATH, b"/full", place), 0)
        for opened in held:
            opened.close()

    def test_nonsense(self) -> None:
        place = Place(self.root)
        for kind, text, expected in (
            (9, b"", errno.ENOSYS),
            (wire.Kind.HELLO, b"again", errno.ENOSYS),
            (wire.Kind.TCP, b"", errno.EINVAL),
            (wire.Kind.PATH, b"relative", errno.EINVAL),
            (wire.Kind.PATH, b"/a\0b", errno.EINVAL),
            (wire.Kind.PATH, b"/missing", errno.ENOENT),
            (wire.Kind.PATH, b"/" + b"a" * 300, errno.ENAMETOOLONG),
        ):
            self.assertEqual(self.ask(kind, text, place), expected, (kind, text))
        # a name would be looked up, and that takes time
        for name in ("localhost", "localhost.invalid", "::1::"):
            self.assertEqual(self.ask(wire.Kind.TCP, wire.encode_address(name, 1)), errno.EINVAL)
        self.assertNotEqual(self.ask(wire.Kind.ABSTRACT, b"a" * 200), 0)


class HelperTests(SynchronousTestCase):
    """The helper's loop, in a thread."""

    def setUp(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.helper = Helper(theirs, Place())
        self.running = threading.Thread(target=self.helper.run)
        self.running.start()
        self.addCleanup(self.end, theirs)

    def end(self, theirs: socket.socket) -> None:
        self.control.close()
        self.running.join(20)
        self.assertFalse(self.running.is_alive())
        theirs.close()

    def client(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(20)
        self.addCleanup(ours.close)
        socket.send_fds(self.control, [b"c"], [theirs.fileno()])
        theirs.close()
        return ours

    def test_answers_come_with_their_sockets_and_in_order(self) -> None:
        client = self.client()
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            there = wire.encode_address("127.0.0.1", listening.getsockname()[1])
            client.sendall(
                wire.encode_request(5, wire.Kind.TCP, there)
                + wire.encode_request(6, 99, b"")
                + wire.encode_request(7, wire.Kind.TCP, there)
            )
            reader = wire.Replies()
            replies: list[wire.Reply] = []
            descriptors: list[int] = []
            while len(replies) < 3:
                data, got, _, _ = socket.recv_fds(client, 4096, 8)
                descriptors += got
                replies += reader.receive_data(data)
            self.assertEqual(replies, [(5, 0), (6, errno.ENOSYS), (7, 0)])
            self.assertEqual(len(descriptors), 2)
            for descriptor in descriptors:
                with socket.socket(fileno=descriptor) as opened:
                    accepted, _ = listening.accept()
                    self.assertEqual(accepted.getpeername(), opened.getsockname())
                    accepted.close()

    def test_bad_clients_are_dropped_and_others_go_on(self) -> None:
        good = self.client()
        talker = self.client()
        talker.sendall(b"\xff" * 64)
        self.assertEqual(talker.recv(1), b"")
        # one that does not read is dropped when its buffer is full
        deaf = self.client()
        deaf.setblocking(False)
        request = wire.encode_request(1, 99, b"") * 100
        with self.assertRaises((BrokenPipeError, ConnectionResetError)):
            deaf.settimeout(20)
            while True:
                deaf.sendall(request)
        good.sendall(wire.encode_request(1, 99, b""))
        self.assertEqual(good.recv(8), wire.encode_reply(1, errno.ENOSYS))

    def test_too_many_clients(self) -> None:
        clients = [self.client() for _ in range(17)]
        self.assertEqual(clients[-1].recv(1), b"")
        clients[0].sendall(wire.encode_request(1, 99, b""))
        self.assertEqual(len(clients[0].recv(8)), 8)
        clients.pop(0).close()
        while True:
            # the helper may see the next one before it has seen that the first one left
            late = self.client()
            late.sendall(wire.encode_request(1, 99, b""))
            if late.recv(8):
                break


class WatchingClock(Clock):
    def addReader(self, reader: object) -> None:
        pass

    removeReader = addReader


class GateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = WatchingClock()
        self.gate = GuestGate(self.clock, "one")
        self.addCleanup(self.gate.close)
        self.child = socket.socket(fileno=os.dup(self.gate.child_fd))
        self.addCleanup(self.child.close)
        self.gate.started()

    def test_interface(self) -> None:
        self.assertTrue(verifyObject(IGuestGate, self.gate))

    def test_ready(self) -> None:
        waiter = self.gate.when_ready()
        with self.assertRaisesRegex(NotRunning, "its helper does not run"):
            self.gate.check()
        self.child.send(b"ready")
        self.gate.doRead()
        self.assertTrue(self.successResultOf(waiter))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        with socket.socket() as client:
            self.gate.hand_over(client)
        data, descriptors, _, _ = socket.recv_fds(self.child, 16, 4)
        self.assertEqual((data, len(descriptors)), (b"c", 1))
        os.close(descriptors[0])

    def test_a_helper_that_fails_says_why(self) -> None:
        waiter = self.gate.when_ready()
        self.child.send(b"failed: Operation not permitted")
        self.gate.doRead()
        self.assertFalse(self.successResultOf(waiter))
        with self.assertRaisesRegex(NotRunning, "Operation not permitted"):
            self.gate.check()

    def test_a_helper_that_says_nothing_is_not_waited_for_long(self) -> None:
        waiter = self.gate.when_ready()
        self.clock.advance(READY_TIMEOUT_S)
        self.assertFalse(self.successResultOf(waiter))
        self.assertFalse(self.successResultOf(self.gate.when_ready()))

    def test_a_helper_that_ends(self) -> None:
        self.child.send(b"ready")
        self.gate.doRead()
        self.child.close()
        self.gate.doRead()
        self.assertRaises(NotRunning, self.gate.check)


class ListenerTests(TestCase):
    """The manager's listener with a real helper."""

    timeout = 60

    def setUp(self) -> Any:
        self.inside = InsideUs(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.inside.stop()))
        return self.inside.start().addCallback(self.assertTrue)

    def talk(self, *parts: bytes) -> Deferred[bytes]:
        """Connect, send the parts one by one, and read one reply."""

        def work() -> bytes:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(20)
                link.connect(self.inside.path)
                for part in parts:
                    link.sendall(part)
                return link.recv(8)

        return deferToThread(work)

    async def test_an_owner_gets_to_the_helper(self) -> None:
        def work() -> tuple[bytes, bytes, int]:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(20)
                link.connect(self.inside.path)
                hello = wire.encode_request(3, wire.Kind.HELLO, b"one")
                for byte in hello:
                    link.sendall(bytes([byte]))
                first = link.recv(8)
                link.sendall(wire.encode_request(4, wire.Kind.UDP, wire.encode_address("127.0.0.1", 9)))
                second, descriptors, _, _ = socket.recv_fds(link, 8, 1)
                for descriptor in descriptors:
                    os.close(descriptor)
                return first, second, len(descriptors)

        self.assertEqual(await deferToThread(work), (wire.encode_reply(3, 0), wire.encode_reply(4, 0), 1))
        ((caller, instance),) = self.inside.callers
        self.assertEqual((caller.uid, caller.pid, instance), (os.geteuid(), os.getpid(), "one"))
        self.assertEqual(len(self.inside.hellos), 0)

    async def test_others_are_told_why_not(self) -> None:
        hello = wire.encode_request(1, wire.Kind.HELLO, b"")
        for error, number in (
            (PermissionRefused("another's"), errno.EACCES),
            (NotRunning("none"), errno.ENOTCONN),
        ):
            self.inside.refuse = error
            self.assertEqual(await self.talk(hello), wire.encode_reply(1, number))
        self.assertEqual(self.inside.callers[-1][1], "default")
        self.inside.refuse = None
        # what is no hello is not answered
        for data in (b"\0" * 6 + b"\xff", wire.encode_request(1, wire.Kind.TCP, b"\0\1x"), hello * 2):
            self.assertEqual(await self.talk(data), b"", data)

    async def test_one_that_says_nothing_is_not_kept(self) -> None:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(self.inside.path)
            await _until(lambda: len(self.inside.hellos) == 1)
            (hello,) = self.inside.hellos
            self.assertLess(hello._timer.getTime() - reactor.seconds(), HELLO_TIMEOUT_S + 1)
            hello._timer.reset(0)
            self.assertEqual(await deferToThread(link.recv, 1), b"")

    async def test_without_a_helper(self) -> None:
        hello = wire.encode_request(1, wire.Kind.HELLO, b"")
        os.kill(self.inside.helper.transport.pid, signal.SIGKILL)
        await _until(lambda: not self.inside.gate.ready)
        self.assertEqual(await self.talk(hello), wire.encode_reply(1, errno.ENOTCONN))

    async def test_the_helper_is_small_and_is_nobody(self) -> None:
        pid = self.inside.helper.transport.pid
        with open(f"/proc/{pid}/status") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        self.assertEqual(status["NoNewPrivs"], "1")
        self.assertEqual(int(status["CapEff"], 16) & ~(1 << 1), 0)
        self.assertEqual(status["Threads"], "1")
        self.assertEqual(status["Name"], "anbox-sockets")
        # Python itself has some ten of them
        self.assertLess(int(status["RssAnon"].split()[0]), 16 * 1024)


async def _until(look: Any) -> None:
    from twisted.internet.task import deferLater

    for _ in range(1000):
        if look():
            return
        await deferLater(reactor, 0.02)
    raise AssertionError("it does not happen")


class PathTests(SynchronousTestCase):
    def test_beside_the_managers_socket(self) -> None:
        self.assertEqual(guest_socket_path("/run/anbox-container.socket"), "/run/anbox-container.guests")
        self.assertEqual(guest_socket_path("/run/x/sockets/manager"), "/run/x/sockets/manager.guests")
