"""Forwards: how they are written, kept, and what happens to the connections; the container is this process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from anbox_tw.errors import AlreadyRunning, NotRunning, PermissionRefused
from anbox_tw.network import ISocketCreator
from anbox_tw.session.forwards import Forward, ForwardError, Forwards, GuestSockets, datagrams
from anbox_tw.session.forwards.errors import BadSpec, NoSuchForward
from anbox_tw.session.forwards.specs import Listen, Target, parse_listen, parse_target
from anbox_tw.session.forwards.store import ForwardStore, Kept
from anbox_tw.session.forwards.streams import StreamCreator
from tests.container.inside_us import InsideUs
from tests.session.guest import until

reactor: Any = global_reactor
WAIT_S = 30


class SpecTests(SynchronousTestCase):
    def test_listeners(self) -> None:
        for text, expected, again in (
            ("tcp:80", Listen("tcp", "127.0.0.1", 80), "tcp:80"),
            ("tcp:0", Listen("tcp", "127.0.0.1", 0), "tcp:0"),
            ("tcp:localhost:80", Listen("tcp", "127.0.0.1", 80), "tcp:80"),
            ("tcp:0.0.0.0:80", Listen("tcp", "0.0.0.0", 80), "tcp:0.0.0.0:80"),
            ("tcp:[::1]:80", Listen("tcp", "::1", 80), "tcp:[::1]:80"),
            ("udp:[0:0::1]:53", Listen("udp", "::1", 53), "udp:[::1]:53"),
            ("unix:/run/x", Listen("unix", path="/run/x"), "unix:/run/x"),
            ("unix:/run/../x:y", Listen("unix", path="/x:y"), "unix:/x:y"),
        ):
            self.assertEqual(parse_listen(text), expected)
            self.assertEqual(str(expected), again)
            self.assertEqual(parse_listen(again), expected)

    def test_targets(self) -> None:
        for text in (
            "tcp:80",
            "tcp:10.0.2.15:80",
            "tcp:[fe80::1]:80",
            "udp:53",
            "localabstract:chrome_devtools_remote",
            "localabstract:a:b c",
            "localfilesystem:/data/local/tmp/x",
            "localreserved:installd",
        ):
            target = parse_target(text)
            self.assertEqual(str(target), text)
            self.assertTrue(target.questions)

    def test_what_adbd_calls_them(self) -> None:
        for text, expected in (
            ("tcp:80", "tcp:80"),
            ("tcp:10.0.2.15:80", "tcp:80:10.0.2.15"),
            ("localabstract:x", "localabstract:x"),
            ("localreserved:x", "localreserved:x"),
            ("localfilesystem:/x", "localfilesystem:/x"),
        ):
            self.assertEqual(parse_target(text).adb_service, expected)
        self.assertRaises(BadSpec, lambda: parse_target("udp:1").adb_service)

    def test_what_is_neither(self) -> None:
        for text in (
            *(
                "",
                "tcp",
                "tcp:",
                "tcp:x",
                "tcp:-1",
                "tcp:65536",
                "tcp:999999999999999",
                "tcp:\u0661",
                "tcp: 80",
            ),
            *("tcp:::1:80", "tcp:[::1]", "tcp:[127.0.0.1]:1", "tcp:example.org:80", "tcp::80", "udp:x:1"),
            *("unix:", "unix:a\0b", f"unix:/{'x' * 107}", "pipe:1", "localabstract:x", "TCP:80"),
        ):
            self.assertRaises(BadSpec, parse_listen, text)
        for text in (
            *(
                "",
                "tcp:0",
                "tcp:",
                "udp:0",
                "unix:/x",
                "localabstract:",
                "localabstract:a\0b",
                "dev:/dev/null",
            ),
            *("localfilesystem:x", "localreserved:a/b", "localreserved:..", f"localabstract:{'x' * 108}"),
        ):
            self.assertRaises(BadSpec, parse_target, text)

    @given(st.text(max_size=40))
    def test_any_text_is_a_spec_or_an_error(self, text: str) -> None:
        for parse in (parse_listen, parse_target):
            for prefix in ("", "tcp:", "udp:[", "unix:", "localabstract:", "localfilesystem:/"):
                try:
                    spec = parse(prefix + text)
                except BadSpec:
                    continue
                self.assertEqual(parse(str(spec)), spec)


class StoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.abspath(f"{self.mktemp()}/a/b/forwards.json")
        self.store = ForwardStore(self.path)

    def test_what_is_saved_is_loaded(self) -> None:
        self.assertEqual(self.store.load(), [])
        kept = [
            Kept(parse_listen("tcp:8080"), parse_target("localabstract:\udcff"), "auto"),
            Kept(parse_listen("unix:/x"), parse_target("tcp:[::1]:80"), "adb"),
        ]
        self.store.save(kept)
        self.assertEqual(self.store.load(), kept)
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["forwards.json"])
        self.store.save([])
        self.assertEqual(self.store.load(), [])

    def test_a_damaged_file_is_left_alone(self) -> None:
        os.makedirs(os.path.dirname(self.path))
        for text in ("", "{", "[]", '{"version": 2, "forwards": []}', '{"version": 1}', "[" * 100000, "\xff"):
            with open(self.path, "w") as file:
                file.write(text)
            self.assertEqual(self.store.load(), [])
            with open(self.path) as file:
                self.assertEqual(file.read(), text)

    def test_a_bad_entry_does_not_hide_the_others(self) -> None:
        os.makedirs(os.path.dirname(self.path))
        good = {"listen": "tcp:1", "target": "tcp:2", "via": "auto"}
        entries = [{}, 7, {**good, "listen": "x"}, {**good, "target": None}, good]
        with open(self.path, "w") as file:
            json.dump({"version": 1, "forwards": entries}, file)
        self.assertEqual(self.store.load(), [Kept(Listen("tcp", port=1), Target("tcp", port=2), "auto")])

    def test_a_place_that_cannot_be_written(self) -> None:
        with open(os.path.abspath(self.mktemp()), "w") as file:
            store = ForwardStore(f"{file.name}/forwards.json")
            self.assertRaises(ForwardError, store.save, [])


def echo(listening: socket.socket) -> None:
    """Serve one connection: send back what comes, and the end after the end."""
    with listening, listening.accept()[0] as link:
        link.settimeout(WAIT_S)
        while data := link.recv(65536):
            link.sendall(data)


class ForwardCase(TestCase):
    """Forwards into this very process."""

    timeout = 90

    def setUp(self) -> Any:
        self.directory = tempfile.mkdtemp(prefix="fw-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.inside = InsideUs(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.inside.stop()))
        self.guest = GuestSockets(reactor, "default")
        self.told: list[tuple[str, str]] = []
        self.forwards = self.make()
        self.guest.container_runs(self.inside.path)
        return self.inside.start().addCallback(self.assertTrue)

    def make(self) -> Forwards:
        forwards = Forwards(
            reactor,
            self.guest,
            store=ForwardStore(f"{self.directory}/forwards.json"),
            tell=lambda what, forward: self.told.append((what, str(forward.listen))),
        )
        forwards.startService()
        self.addCleanup(forwards.stopService)
        return forwards

    def service(self, address: Any = ("127.0.0.1", 0), family: int = socket.AF_INET) -> socket.socket:
        """A listening socket of the guest's."""
        listening = socket.socket(family, socket.SOCK_STREAM)
        self.addCleanup(listening.close)
        listening.bind(address)
        listening.listen(64)
        listening.settimeout(WAIT_S)
        return listening

    def tcp(self, service: socket.socket, **more: Any) -> Forward:
        return self.forwards.add("tcp:0", f"tcp:{service.getsockname()[1]}", **more)

    def call(self, forward: Forward) -> socket.socket:
        """A caller's connection; connecting does not wait for us."""
        if forward.listen.kind == "unix":
            link = socket.socket(socket.AF_UNIX)
            address: Any = forward.listen.path
        else:
            link = socket.socket(socket.AF_INET6 if ":" in forward.listen.address else socket.AF_INET)
            address = (forward.listen.address, forward.listen.port)
        self.addCleanup(link.close)
        link.settimeout(WAIT_S)
        link.connect(address)
        return link

    async def assert_reset(self, forward: Forward) -> None:
        """A caller is reset, perhaps while it still connects."""
        await in_thread(lambda: self.assertRaises(ConnectionResetError, lambda: self.call(forward).recv(1)))


def in_thread(work: Callable[[], Any]) -> Deferred[Any]:
    """Blocking work of callers and services."""
    return deferToThread(work)


class StreamTests(ForwardCase):
    async def talk(self, forward: Forward, service: socket.socket) -> None:
        """One conversation, half-close included."""
        served = in_thread(lambda: echo(service))

        def caller() -> bytes:
            link = self.call(forward)
            link.sendall(b"x" * 100_000)
            link.shutdown(socket.SHUT_WR)
            got = b""
            while data := link.recv(65536):
                got += data
            return got

        # the service answers while the caller still sends: the buffers hold it
        self.assertEqual(await in_thread(caller), b"x" * 100_000)
        await served
        await until(lambda: forward.open == 0)
        self.assertEqual(forward.count(), (100_000, 100_000))
        self.assertEqual((forward.accepted, forward.failed, forward.last_error), (1, 0, ""))

    async def test_tcp(self) -> None:
        service = self.service()
        await self.talk(self.tcp(service), service)

    async def test_ipv6_on_both_sides(self) -> None:
        service = self.service(("::1", 0), socket.AF_INET6)
        port = service.getsockname()[1]
        await self.talk(self.forwards.add("tcp:[::1]:0", f"tcp:[::1]:{port}"), service)

    async def test_loopback_is_ipv4_or_else_ipv6(self) -> None:
        service = self.service(("::1", 0), socket.AF_INET6)
        await self.talk(self.tcp(service), service)

    async def test_unix_to_abstract(self) -> None:
        name = os.urandom(8).hex()
        service = self.service(f"\0{name}", socket.AF_UNIX)
        forward = self.forwards.add(f"unix:{self.directory}/s", f"localabstract:{name}")
        self.assertEqual(stat.S_IMODE(os.stat(f"{self.directory}/s").st_mode), 0o600)
        await self.talk(forward, service)
        await self.forwards.remove(f"unix:{self.directory}/s")
        self.assertFalse(os.path.exists(f"{self.directory}/s"))

    async def test_file_system(self) -> None:
        service = self.service(f"{self.directory}/guest", socket.AF_UNIX)
        await self.talk(self.forwards.add("tcp:0", f"localfilesystem:{self.directory}/guest"), service)

    async def test_refused_is_reset_at_once(self) -> None:
        service = self.service()
        forward = self.tcp(service)
        service.close()
        await self.assert_reset(forward)
        self.assertEqual((forward.accepted, forward.failed), (1, 1))
        self.assertIn("nobody listens", forward.last_error)
        missing = self.forwards.add("tcp:0", "localfilesystem:/nonexistent")
        await self.assert_reset(missing)
        self.assertIn("no such socket", missing.last_error)

    async def test_a_reset_of_the_service_is_one_for_the_caller(self) -> None:
        service = self.service()
        forward = self.tcp(service)

        def both() -> None:
            link = self.call(forward)
            link.sendall(b"hello")
            accepted, _ = service.accept()
            accepted.recv(5)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            accepted.close()
            self.assertRaises(ConnectionResetError, link.recv, 1)

        await in_thread(both)
        await until(lambda: forward.open == 0)

    async def test_a_caller_that_leaves_is_missed(self) -> None:
        service = self.service()
        forward = self.tcp(service)

        def both() -> None:
            link = self.call(forward)
            accepted, _ = service.accept()
            accepted.settimeout(WAIT_S)
            link.close()
            self.assertEqual(accepted.recv(1), b"")
            accepted.close()

        await in_thread(both)
        await until(lambda: forward.open == 0)

    async def test_a_hundred_at_once(self) -> None:
        service = self.service()
        forward = self.tcp(service)

        def both() -> None:
            links = [self.call(forward) for _ in range(100)]
            accepted = [service.accept()[0] for _ in links]
            for number, link in enumerate(links):
                link.sendall(b"%03d" % number)
            for each in accepted:
                each.settimeout(WAIT_S)
                each.sendall(each.recv(3)[::-1])
            for number, link in enumerate(links):
                self.assertEqual(link.recv(3), (b"%03d" % number)[::-1])
            for each in (*links, *accepted):
                each.close()

        await in_thread(both)
        await until(lambda: forward.open == 0)
        self.assertEqual(forward.count(), (300, 300))

    async def test_a_service_that_accepts_late(self) -> None:
        """A full backlog is waited for."""
        service = self.service(f"{self.directory}/guest", socket.AF_UNIX)
        service.listen(0)
        forward = self.forwards.add("tcp:0", f"localfilesystem:{self.directory}/guest")
        links = [self.call(forward) for _ in range(4)]
        await until(lambda: bool(self.guest._retries))

        def serve() -> None:
            for _ in links:
                service.accept()[0].close()

        await in_thread(serve)
        for link in links:
            self.assertEqual(await in_thread(lambda link=link: link.recv(1)), b"")  # type: ignore[misc]
        self.assertEqual(forward.failed, 0)

    async def test_more_than_the_limit_is_reset(self) -> None:
        service = self.service()
        forward = self.tcp(service)
        forward.relays.limit = 1
        first = self.call(forward)
        await until(lambda: forward.open == 1)
        await self.assert_reset(forward)
        self.assertIn("limit", forward.last_error)
        first.close()


class DatagramTests(ForwardCase):
    def guest_socket(self, address: str = "127.0.0.1") -> socket.socket:
        """A UDP service of the guest's."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        service = socket.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(service.close)
        service.settimeout(WAIT_S)
        service.bind((address, 0))
        return service

    def udp(self, service: socket.socket) -> Forward:
        return self.forwards.add("udp:0", f"udp:{service.getsockname()[1]}")

    def peer(self, forward: Forward) -> socket.socket:
        family = socket.AF_INET6 if ":" in forward.listen.address else socket.AF_INET
        link = socket.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(link.close)
        link.settimeout(WAIT_S)
        link.connect((forward.listen.address, forward.listen.port))
        return link

    async def test_each_peer_gets_its_answers(self) -> None:
        service = self.guest_socket()
        forward = self.udp(service)

        def both() -> None:
            peers = [self.peer(forward) for _ in range(5)]
            for number, each in enumerate(peers):
                each.send(b"%d" % number)
                data, address = service.recvfrom(65536)
                self.assertEqual(data, b"%d" % number)
                # the largest that IPv4 carries
                each.send(b"x" * 65507)
                self.assertEqual(service.recvfrom(65536), (b"x" * 65507, address))
                service.sendto(data * 2, address)
            for number, each in enumerate(peers):
                self.assertEqual(each.recv(16), b"%d" % number * 2)

        await in_thread(both)
        self.assertEqual((forward.open, forward.accepted, forward.failed), (5, 5, 0))
        self.assertEqual(forward.count(), (5 * 65508, 10))
        await self.forwards.remove(forward.listen)
        self.assertEqual((forward.open, forward.count()), (0, (5 * 65508, 10)))

    async def test_ipv6(self) -> None:
        service = self.guest_socket("::1")
        forward = self.forwards.add("udp:[::1]:0", f"udp:[::1]:{service.getsockname()[1]}")

        def both() -> None:
            peer = self.peer(forward)
            peer.send(b"")
            self.assertEqual(service.recvfrom(1)[0], b"")

        await in_thread(both)

    async def test_a_service_that_comes_later(self) -> None:
        service = self.guest_socket()
        address = service.getsockname()
        forward = self.udp(service)
        service.close()
        peer = self.peer(forward)
        peer.send(b"lost")
        await until(lambda: "nobody listens" in forward.last_error)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.settimeout(WAIT_S)
            again.bind(address)
            peer.send(b"there")
            self.assertEqual((await in_thread(lambda: again.recvfrom(16)))[0], b"there")
        self.assertEqual(forward.accepted, 1)

    async def test_the_silent_are_forgotten_and_the_oldest_make_room(self) -> None:
        service = self.guest_socket()
        forward = self.udp(service)
        self.patch(datagrams, "MAX_FLOWS", 2)
        peers = [self.peer(forward) for _ in range(3)]
        for number, each in enumerate(peers):
            each.send(b"%d" % number)
            await until(lambda number=number: forward.accepted == number + 1)  # type: ignore[misc]
        self.assertEqual(forward.open, 2)
        flows = list(forward.listener._flows.values())
        self.assertEqual([flow.peer for flow in flows], [each.getsockname() for each in peers[1:]])
        # one has been silent for as long as it may
        flows[0].used -= datagrams.IDLE_S
        forward.listener._timer.reset(0)
        await until(lambda: forward.open == 1)
        self.assertIs(next(iter(forward.relays)), flows[1])

    async def test_without_a_container(self) -> None:
        service = self.guest_socket()
        forward = self.udp(service)
        peer = self.peer(forward)
        peer.send(b"1")
        await in_thread(lambda: service.recvfrom(1))
        self.guest.container_gone()
        self.assertEqual(forward.open, 0)
        peer.send(b"2")
        await until(lambda: forward.failed == 1)
        self.guest.container_runs(self.inside.path)
        peer.send(b"3")
        self.assertEqual((await in_thread(lambda: service.recvfrom(1)))[0], b"3")

    def test_a_port_that_is_taken(self) -> None:
        other = self.guest_socket()
        with self.assertRaisesRegex(AlreadyRunning, "UDP port .* is taken"):
            self.forwards.add(f"udp:{other.getsockname()[1]}", "udp:1")
        self.assertEqual(len(self.forwards), 0)
        self.assertEqual(self.forwards.redirect("udp", 0, 53).target.port, 53)
        self.assertEqual([each[::2] for each in self.forwards.redirections()], [("udp", 53)])


class LifeTests(ForwardCase):
    async def test_without_a_container_callers_are_reset(self) -> None:
        service = self.service()
        forward = self.tcp(service)
        self.assertEqual(self.forwards.way("auto", forward.target), "direct")
        self.guest.container_gone()
        self.assertEqual(self.forwards.way("direct", forward.target), "")
        await self.assert_reset(forward)
        self.assertEqual(forward.last_error, "no container runs")
        self.guest.container_runs("")
        await self.assert_reset(forward)
        self.assertIn("offers no way", forward.last_error)

    async def test_a_container_that_ends_ends_its_connections(self) -> None:
        service = self.service()
        forward = self.tcp(service)
        link = self.call(forward)
        await until(lambda: forward.open == 1)
        accepted, _ = service.accept()
        await self.inside.helper.stop()
        self.guest.container_gone()
        await in_thread(lambda: self.assertRaises(ConnectionResetError, link.recv, 1))
        accepted.close()
        # the next container
        await self.inside.start_container()
        self.guest.container_runs(self.inside.path)
        link = self.call(forward)
        accepted, _ = await in_thread(service.accept)
        link.close()
        accepted.close()
        self.assertEqual(forward.failed, 0)

    async def test_a_helper_that_dies_is_replaced_by_the_next(self) -> None:
        service = self.service()
        forward = self.tcp(service)
        self.call(forward).close()
        (await in_thread(service.accept))[0].close()
        await self.inside.helper.stop()
        await self.inside.start_container()
        link = self.call(forward)
        accepted, _ = await in_thread(service.accept)
        link.close()
        accepted.close()

    async def test_refusals_are_explained(self) -> None:
        forward = self.tcp(self.service())
        for error, words in (
            (PermissionRefused("another's"), "belongs to another user"),
            (NotRunning("none"), "no way into the container"),
        ):
            self.inside.refuse = error
            self.guest.container_runs(self.inside.path)
            with self.assertRaisesRegex(ForwardError, words):
                await self.guest.open(forward.target)
            self.assertEqual(self.forwards.way("auto", forward.target), "")

    async def test_opening_from_python(self) -> None:
        service = self.service()
        sock = await self.guest.open(Target("tcp", port=service.getsockname()[1]))
        self.assertEqual(service.accept()[1], sock.getsockname())
        sock.close()

    async def test_a_manager_that_is_gone(self) -> None:
        await self.inside.listener.stopService()
        with self.assertRaisesRegex(ForwardError, "guests"):
            await self.guest.open(Target("tcp", port=1))


class RegistryTests(ForwardCase):
    def test_creator(self) -> None:
        forward = self.tcp(self.service())
        creator = StreamCreator(reactor, self.guest, forward, self.forwards)
        self.assertTrue(verifyObject(ISocketCreator, creator))

    async def test_add_list_remove(self) -> None:
        first = self.forwards.add("tcp:0", "tcp:1")
        self.assertGreater(first.listen.port, 0)
        second = self.forwards.add(f"unix:{self.directory}/s", "tcp:1")
        self.assertEqual(list(self.forwards), [first, second])
        with self.assertRaisesRegex(AlreadyRunning, "is forwarded to tcp:1 already"):
            self.forwards.add(first.listen, "tcp:2")
        self.assertIs(await self.forwards.remove(str(first.listen)), first)
        self.assertRaises(NoSuchForward, self.forwards.remove, str(first.listen))
        self.assertRaises(ConnectionRefusedError, self.call, first)
        self.assertEqual(await self.forwards.remove_all(), [second])
        self.assertEqual(len(self.forwards), 0)
        self.assertEqual([what for what, _ in self.told], ["added", "added", "removed", "removed"])

    async def test_removal_ends_the_connections(self) -> None:
        forward = self.tcp(self.service())
        link = self.call(forward)
        await until(lambda: forward.open == 1)
        await self.forwards.remove(forward.listen)
        self.assertEqual(link.recv(1), b"")

    def test_what_cannot_be(self) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            with self.assertRaisesRegex(AlreadyRunning, f"is taken, .*pid {os.getpid()}"):
                self.forwards.add(f"tcp:{other.getsockname()[1]}", "tcp:1")
        for listen, target, via in (
            ("udp:0", "tcp:1", "auto"),
            ("tcp:0", "udp:1", "auto"),
            ("unix:/x", "udp:1", "auto"),
            ("tcp:0", "tcp:1", "mail"),
            ("udp:0", "udp:1", "adb"),
        ):
            self.assertRaises(BadSpec, self.forwards.add, listen, target, via=via)
        self.assertEqual(len(self.forwards), 0)

    async def test_what_is_kept_is_there_again(self) -> None:
        kept = self.forwards.add("tcp:0", "localabstract:x", via="direct", persistent=True)
        self.forwards.add("tcp:0", "tcp:1")
        await self.forwards.stopService()
        again = self.make()
        self.assertEqual([(f.listen, f.target, f.via) for f in again], [(kept.listen, kept.target, "direct")])
        await again.remove(kept.listen)
        await again.stopService()
        self.assertEqual(list(self.make()), [])

    async def test_a_kept_one_whose_port_is_taken_stays_with_its_problem(self) -> None:
        kept = self.forwards.add("tcp:0", "tcp:1", persistent=True)
        await self.forwards.stopService()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", kept.listen.port))
            other.listen()
            again = self.make()
            (forward,) = again
            self.assertIn("is taken", forward.problem)
            self.assertEqual(again.redirections(), [])
            await again.remove(forward.listen)

    async def test_the_consoles_redirections(self) -> None:
        forward = self.forwards.redirect("tcp", 0, 80)
        port = forward.listen.port
        self.forwards.add(f"unix:{self.directory}/s", "tcp:80")
        self.forwards.add("tcp:[::1]:0", "tcp:80")
        self.forwards.add("tcp:0", "localabstract:x")
        self.assertEqual(self.forwards.redirections(), [("tcp", port, 80)])
        self.assertRaises(AlreadyRunning, self.forwards.redirect, "tcp", port, 81)
        self.assertRaises(NoSuchForward, self.forwards.end_redirection, "udp", port)
        await self.forwards.end_redirection("tcp", port)
        self.assertEqual(self.forwards.redirections(), [])
