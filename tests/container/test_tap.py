"""``twistd anbox-container``: its options, and the command itself as a process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from typing import Any

from twisted.application.service import IServiceMaker
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.internet.task import deferLater
from twisted.plugin import getPlugins
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.container.backends import make_backends
from anbox_tw.container.client import ContainerClient, ContainerClientService, connect
from anbox_tw.container.tap import Options, makeService
from anbox_tw.errors import ConfigError, HostLacks, NotRunning
from anbox_tw.network import RetryPolicy
from anbox_tw.rpc import Channel, RemoteError
from tests.support import REPOSITORY, need_root, need_tool

reactor: Any = _reactor


class OptionsTests(SynchronousTestCase):
    def parse(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions(arguments)
        return options

    def test_flags_of_the_original(self) -> None:
        options = self.parse(
            "--android-image=/a.img",
            "--data-path=/data",
            "--privileged",
            "--daemon",
            "--use-rootfs-overlay",
            "--force-squashfuse",
            "--container-network-address=192.168.250.2/24",
            "--container-network-gateway=192.168.250.1",
            "--container-network-dns-servers=8.8.8.8, 1.1.1.1",
        )
        network = options["network-spec"]
        self.assertEqual((network.address, network.gateway), ("192.168.250.2/24", "192.168.250.1"))
        self.assertEqual(network.dns, ("8.8.8.8", "1.1.1.1"))
        self.assertEqual((options["android-image"], options["data-path"]), ("/a.img", "/data"))
        self.assertTrue(
            all(options[name] for name in ("privileged", "use-rootfs-overlay", "force-squashfuse"))
        )

    def test_mistakes(self) -> None:
        for words, arguments in (
            ("process or lxc", ["--backend", "docker"]),
            ("auto or namespaces or plain", ["--isolation", "jail"]),
            ("exclude each other", ["--rootfs", "host", "--android-image", "/x"]),
            ("no arguments", ["start"]),
            ("not an IPv4 address", ["--container-network-address", "1.2.3"]),
            ("not an IPv4 address", ["--container-network-dns-servers", "one.one"]),
            ("network mode", ["--network", "bridge"]),
            ("no group", ["--group", "no-such-group-here"]),
            ("no user", ["--admin", "no-such-user-here"]),
            ("not a pattern", ["--allow-device", "sda"]),
            ("--data-path is empty", ["--data-path="]),
            ("--socket is empty", ["--socket="]),
            ("not recognized", ["--bogus"]),
            ("requires argument", ["--socket"]),
        ):
            error = self.assertRaises(UsageError, self.parse, *arguments)
            self.assertIn(words, str(error))

    def test_numbers_for_group_and_administrators(self) -> None:
        options = self.parse("--group=12", "--admin=4001", "--admin=root", "--allow-device=/dev/video*")
        self.assertEqual((options["gid"], options["admin"]), (12, ["4001", "root"]))
        self.assertEqual(self.parse("--group=root")["gid"], 0)

    def test_every_option_from_a_file(self) -> None:
        path = self.mktemp()
        with open(path, "w") as file:
            file.write(
                "backend = 'lxc'\nsocket = '/run/x'\ngroup = 12\nisolation = 'plain'\nruntime-dir = '/r'\n"
                "data_path = '/d'\nrootfs = 'host'\nnetwork = 'none'\nallow-device = ['/dev/a', '/dev/b']\n"
                "admin = 4001\nprivileged = true\nuse_rootfs_overlay = false\n"
            )
        options = self.parse("--data-path=/first", "--config", path)
        self.assertEqual(options["data-path"], "/first")
        options = self.parse("-c", path)
        self.assertEqual((options["backend"], options["socket"], options["gid"]), ("lxc", "/run/x", 12))
        self.assertEqual((options["data-path"], options["allow-device"]), ("/d", ["/dev/a", "/dev/b"]))
        self.assertEqual((options["privileged"], options["use-rootfs-overlay"]), (1, 0))

    def test_plugin_is_there(self) -> None:
        made = {plugin.tapname: plugin for plugin in getPlugins(IServiceMaker)}
        maker: Any = made["anbox-container"]
        self.assertIs(maker.options, Options)
        self.assertEqual(makeService(self.parse())._command, "anbox-container")

    def test_backends(self) -> None:
        self.assertIn("process", make_backends(reactor, "process", root=False))
        self.assertRaises(HostLacks, make_backends, reactor, "lxc", root=False)
        self.assertRaises(ConfigError, make_backends, reactor, "docker", root=False)


class Command(ProcessProtocol):
    """``twistd -n anbox-container`` as a process."""

    def __init__(self) -> None:
        self.output = b""
        self.errors = b""
        self.ended: list[Deferred[int]] = []
        self.status: int | None = None

    def outReceived(self, data: bytes) -> None:
        self.output += data

    def errReceived(self, data: bytes) -> None:
        self.errors += data

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        self.status = -value.signal if value.signal else value.exitCode
        waiting, self.ended = self.ended, []
        for waiter in waiting:
            waiter.callback(self.status)

    def when_ended(self) -> Deferred[int]:
        waiter: Deferred[int] = Deferred()
        if self.status is not None:
            waiter.callback(self.status)
        else:
            self.ended.append(waiter)
        return waiter

    def signal(self, name: str) -> None:
        transport: Any = self.transport
        try:
            transport.signalProcess(name)
        except ProcessExitedAlready:
            pass


class CommandTestCase(TestCase):
    """A directory, and managers in it that end with the test."""

    timeout = 60
    backend = "process"

    def setUp(self) -> None:
        self.base = f"/tmp/anbox-tw-tap-{os.getpid()}-{id(self):x}"
        os.makedirs(f"{self.base}/run", mode=0o700)
        os.chmod(self.base, 0o755)
        self.addCleanup(self.remove)
        self.socket = f"{self.base}/socket"
        self.commands: list[Command] = []

    def remove(self) -> None:
        shutil.rmtree(self.base)

    async def end_all(self) -> None:
        for command in self.commands:
            command.signal("TERM")
        await DeferredList([command.when_ended() for command in self.commands])

    def run_command(self, *more: str, environment: dict[str, str] | None = None) -> Command:
        if not self.commands:
            self.addCleanup(lambda: Deferred.fromCoroutine(self.end_all()))
        command = Command()
        arguments = [
            sys.executable,
            "-c",
            "from twisted.scripts.twistd import run; run()",
            "-n",
            "--pidfile=",
        ]
        arguments += ["anbox-container", f"--backend={self.backend}", f"--runtime-dir={self.base}/run"]
        arguments += [f"--data-path={self.base}/data", f"--socket={self.socket}", *more]
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})}
        reactor.spawnProcess(command, sys.executable, arguments, env=env, path=self.base)
        self.commands.append(command)
        return command

    async def client(self) -> ContainerClient:
        retry = RetryPolicy(first_delay=0.05, max_delay=0.2, deadline=20)
        client = await connect(reactor, self.socket, retry=retry)
        self.addCleanup(client.close)
        return client


class CommandTests(CommandTestCase):
    async def test_serves_and_stops_cleanly(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(f"{self.base}/notify")
            notified.settimeout(10)
            command = self.run_command(environment={"NOTIFY_SOCKET": f"{self.base}/notify"})
            client = await self.client()
            about = await client.manager_info()
            self.assertEqual((about["default_backend"], about["data_path"]), ("process", f"{self.base}/data"))
            self.assertEqual(os.stat(self.socket).st_mode & 0o777, 0o660)
            await client.start_container(init=["/bin/sleep", "1000"])
            [info] = await client.list_containers()
            self.assertEqual(info["state"], "running")
            self.assertTrue(os.path.exists(f"/proc/{info['pid']}"))
            lost = client.when_lost()
            command.signal("TERM")
            self.assertEqual(await command.when_ended(), -signal.SIGTERM)
            await lost
            self.assertFalse(os.path.exists(f"/proc/{info['pid']}"))
            self.assertFalse(os.path.exists(self.socket))
            self.assertEqual(os.listdir(f"{self.base}/run/anbox"), [])
            self.assertFalse(os.path.exists(f"{self.base}/data/state/undo.journal"))
            self.assertTrue(notified.recv(100).startswith(b"READY=1"))
            self.assertEqual(notified.recv(100), b"STOPPING=1")

    async def test_second_one_is_refused_and_garbage_harms_nobody(self) -> None:
        self.run_command()
        client = await self.client()
        second = self.run_command()
        self.assertEqual(await second.when_ended(), 1)
        self.assertIn(b"already running, pid", second.errors)
        self.assertIn(b"cure:", second.errors)
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 5000, b"\0\0\x01\0x", b"\0\0"):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(self.socket)
                raw.sendall(garbage)
        self.assertEqual(await client.list_containers(), [])

    async def test_killed_manager_is_cleaned_up_after_and_clients_come_back(self) -> None:
        first = self.run_command()
        lost: list[str] = []
        events: list[dict[str, Any]] = []
        service = ContainerClientService(
            reactor,
            self.socket,
            on_lost=lost.append,
            on_event=events.append,
            retry=RetryPolicy(first_delay=0.05, max_delay=0.2),
        )
        service.startService()
        self.addCleanup(service.stopService)
        client = await service.when_connected()
        await client.start_container("work", detached=True, init=["/bin/sleep", "1000"])
        self.assertEqual(events[-1]["state"], "running")
        pid = (await client.container_info("work"))["pid"]
        first.signal("KILL")
        await client.when_lost()
        self.assertEqual(len(lost), 1)
        self.assertIsNone(service.client)
        second = self.run_command()
        client = await service.when_connected()
        await client.start_container("work", init=["/bin/sleep", "1000"])
        self.assertFalse(os.path.exists(f"/proc/{pid}"))
        self.assertIn(b"undoing what a killed manager left", second.output)
        await service.stopService()
        watcher = await self.client()
        for _ in range(200):
            if (await watcher.container_info("work"))["state"] == "stopped":
                break
            await deferLater(reactor, 0.05)
        self.assertEqual((await watcher.container_info("work"))["state"], "stopped")

    async def test_two_managers_with_an_instance_of_the_same_name(self) -> None:
        self.run_command()
        self.run_command(f"--socket={self.base}/other", f"--data-path={self.base}/other-data")
        retry = RetryPolicy(first_delay=0.05, max_delay=0.2, deadline=20)
        other = await connect(reactor, f"{self.base}/other", retry=retry)
        self.addCleanup(other.close)
        client = await self.client()
        await gatherResults([one.start_container(init=["/bin/sleep", "1000"]) for one in (client, other)])
        await client.stop_container()
        self.assertEqual((await other.container_info())["state"], "running")
        self.assertTrue(os.path.exists(f"/proc/{(await other.container_info())['pid']}"))

    async def test_starts_that_fail_say_why_and_with_which_code(self) -> None:
        with open(f"{self.base}/file", "w"):
            pass
        for status, words, arguments in (
            (1, b"ANBOX-C002", ["--android-image=/nonexistent"]),
            (1, b"ANBOX-C002", ["--rootfs=/nonexistent"]),
            (1, b"ANBOX-C004", [f"--data-path={self.base}/file/data"]),
            (2, b"is not a directory", ["--runtime-dir=/nonexistent"]),
            (2, b"not recognized", ["--bogus"]),
        ):
            command = self.run_command(*arguments)
            self.assertEqual(await command.when_ended(), status, arguments)
            self.assertIn(words, command.errors)
            self.assertNotIn(b"Traceback", command.errors + command.output)
            self.assertFalse(os.path.exists(self.socket))

    async def test_endpoint_instead_of_a_path(self) -> None:
        self.run_command(f"--socket=unix:{self.socket}:mode=600")
        client = await self.client()
        await client.manager_info()

    async def test_nobody_there(self) -> None:
        with self.assertRaises(NotRunning) as caught:
            await connect(reactor, self.socket)
        self.assertIn("anbox up", caught.exception.cure)

    async def test_service_that_never_connects_can_be_stopped(self) -> None:
        service = ContainerClientService(reactor, self.socket)
        service.startService()
        waiting = service.when_connected()
        await service.stopService()
        with self.assertRaises(NotRunning):
            await waiting

    async def test_container_that_cannot_start(self) -> None:
        self.run_command()
        client = await self.client()
        with self.assertRaises(RemoteError) as caught:
            await client.start_container(init=["/nonexistent/init"])
        self.assertEqual(caught.exception.code, "ANBOX-C013")
        self.assertEqual((await client.container_info())["state"], "failed")


class RootTests(CommandTestCase):
    """A manager that is root, with the real lxc backend, and callers who are not."""

    backend = "lxc"

    def setUp(self) -> None:
        need_root()
        need_tool("lxc-start")
        super().setUp()

    async def client_as(self, uid: int) -> ContainerClient:
        """A client that connected as another user: the kernel notes who connects, not who talks."""
        channel = Channel(reactor, name=f"the manager, as uid {uid}")
        with socket.socket(socket.AF_UNIX) as sock:
            groups = os.getgroups()
            os.setgroups([])
            os.setegid(4000)
            os.seteuid(uid)
            try:
                sock.connect(self.socket)
            finally:
                os.seteuid(0)
                os.setegid(0)
                os.setgroups(groups)
            sock.setblocking(False)
            factory = Factory.forProtocol(lambda: channel)
            reactor.adoptStreamConnection(sock.fileno(), socket.AF_UNIX, factory)
        client = ContainerClient(channel)
        self.addCleanup(client.close)
        return client

    def file(self, name: str, uid: int) -> str:
        path = f"{self.base}/{name}"
        with open(path, "w") as file:
            file.write(f"this is {name}\n")
        os.chmod(path, 0o400)
        os.chown(path, uid, 4000)
        return path

    async def refused(self, call: Deferred[Any], words: str) -> None:
        with self.assertRaises(RemoteError) as caught:
            await call
        self.assertIn(words, str(caught.exception))

    async def test_users_get_what_is_theirs(self) -> None:
        command = self.run_command("--group=4000")
        root = await self.client()
        alice, bob = await self.client_as(4001), await self.client_as(4002)
        hers, roots = self.file("hers", 4001), self.file("roots", 0)
        await self.refused(
            alice.start_container("alice", bind_mounts=[(roots, "mnt")]), f"{roots}: Permission denied"
        )
        init = ["/bin/sh", "-c", "cat /hers; exec sleep 1000"]
        await alice.start_container("alice", bind_mounts=[(hers, "hers")], init=init)
        info = await alice.container_info("alice")
        self.assertEqual((info["state"], info["owner_uid"], info["owner_gid"]), ("running", 4001, 4000))
        pid = info["pid"]
        with open(f"/proc/{pid}/root/hers") as file:
            self.assertEqual(file.read(), "this is hers\n")
        self.assertNotEqual(os.stat(f"/proc/{pid}").st_uid, 0)
        self.assertEqual(await bob.list_containers(), [])
        await self.refused(bob.stop_container("alice"), "is not the one of uid 4002")
        await self.refused(bob.start_container("alice"), "started by uid 4001")
        await self.refused(bob.start_container("bob", backend="process"), "for administrators")
        self.assertEqual([one["instance"] for one in await root.list_containers()], ["alice"])
        await alice.close()
        for _ in range(400):
            if (await root.container_info("alice"))["state"] == "stopped":
                break
            await deferLater(reactor, 0.05)
        self.assertFalse(os.path.exists(f"/proc/{pid}"))
        await self.refused(bob.start_container("alice"), "belongs to uid 4001")
        with open("/proc/self/mountinfo") as mounts:
            self.assertNotIn(self.base, mounts.read())
        command.signal("TERM")
        await command.when_ended()
        self.assertEqual(os.listdir(f"{self.base}/run/anbox"), [])
