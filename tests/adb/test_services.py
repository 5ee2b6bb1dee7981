"""adbd's services one by one, over a direct connection, with what goes wrong in them."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import struct
import zipfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.adb import StreamRefused, TransportClosed
from anbox_tw.adb._jdwp import ProcessInfo
from anbox_tw.adb.client import Device, connect_device
from anbox_tw.adb.daemon import DaemonConfig
from anbox_tw.adb.daemon.commands import Command, find_command, split_command
from anbox_tw.adb.daemon.control import DeviceControl
from anbox_tw.adb.daemon.jdwp import JdwpHub
from anbox_tw.adb.daemon.logs import LogBuffer
from anbox_tw.adb.daemon.packages import PackageError, package_name
from anbox_tw.adb.daemon.screen import Picture
from anbox_tw.adb.daemon.sockets import parse_local, parse_tcp_port
from anbox_tw.errors import AdbError, NetworkError
from tests.adb.real import DaemonTestCase, reactor


class ServiceTestCase(DaemonTestCase):
    async def device(self, config: DaemonConfig | None = None) -> Device:
        port = await self.serve(config)
        device = await connect_device(reactor, f"localhost:{port}", keys=[])
        self.addCleanup(device.close)
        return device

    async def say(self, device: Device, service: str, data: bytes = b"") -> bytes:
        stream = await device.open(service, stall_timeout=10)
        stream.write(data)
        return await stream.read_all()

    async def pause(self) -> None:
        await deferLater(reactor, 0.01)


class SocketServiceTests(ServiceTestCase):
    async def test_refusals(self) -> None:
        device = await self.device()
        for service in (
            "nothing",
            "framebuffer:",
            "spin",
            "shell",
            "tcp:example.org:80",
            "tcp:x",
            "tcp:0",
            "tcp:1",
            "local:",
            "localfilesystem:/nonexistent",
            "localabstract:nobody",
            "dev:/nonexistent",
            "dev-raw:/dev/null",
            "sink:x",
            "source:-1",
            "jdwp:1",
            "jdwp:x",
            "tcpip:5555",
            "usb:",
        ):
            await self.assertFailure(device.open(service), StreamRefused)
        self.assertEqual(parse_tcp_port("localhost:5"), 5)
        self.assertEqual(parse_local("local", "x"), "/dev/socket/x")
        self.assertEqual(parse_local("localabstract", "x"), "\0x")
        self.assertRaises(AdbError, parse_local, "local", "")

    async def test_sink_and_source(self) -> None:
        device = await self.device()
        self.assertEqual(await self.say(device, "source:2500000"), bytes(2_500_000))
        self.assertEqual(await self.say(device, "source:0"), b"")
        self.assertEqual(await self.say(device, "sink:0"), b"")
        self.assertEqual(await self.say(device, "sink:2000000", bytes(2_000_000)), b"")

    async def test_devices(self) -> None:
        device = await self.device()
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        os.set_blocking(ours, False)
        name = os.ttyname(theirs)
        os.close(theirs)
        for kind in ("dev", "dev-raw"):
            stream = await device.open(f"{kind}:{name}", stall_timeout=10)
            os.write(ours, b"to the host\n")
            self.assertIn(b"to the host", bytes(await stream.read()))
            stream.write(b"to the device\n")
            seen = b""
            while b"to the device" not in seen:
                await self.pause()
                with contextlib.suppress(BlockingIOError):
                    seen += os.read(ours, 1000)
            stream.close()
            await stream.when_closed()
        self.assertEqual(await self.say(device, "dev:/dev/null", b"gone"), b"")

    async def test_unix_sockets(self) -> None:
        device = await self.device()
        name = f"anbox-tw-services-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"\0{name}")
            listening.listen()
            stream = await device.open(f"localabstract:{name}", stall_timeout=10)
            accepted, _ = listening.accept()
            with accepted:
                accepted.sendall(b"last words")
            self.assertEqual(await stream.read_all(), b"last words")

    async def test_reverse_mistakes(self) -> None:
        device = await self.device()
        for request, text in (
            ("reverse:nonsense", b"not a reverse forwarding command"),
            ("reverse:forward:tcp:0", b"bad forward"),
            ("reverse:forward:tcp:0;*x", b"bad forward"),
            ("reverse:forward:tcp:99999;tcp:1", b"cannot bind listener: bad port number '99999'"),
            (
                "reverse:forward:tcp:example.org:1;tcp:1",
                b"listening on specified hostname currently unsupported",
            ),
            ("reverse:forward:vsock:1;tcp:1", b"cannot bind listener: unknown socket specification:vsock:1"),
            ("reverse:forward:localfilesystem:/nonexistent/x;tcp:1", b"cannot bind listener"),
            ("reverse:killforward:tcp:1", b"listener 'tcp:1' not found"),
        ):
            answer = await self.say(device, request)
            self.assertEqual(answer[:4], b"FAIL", request)
            self.assertEqual(int(answer[4:8], 16), len(answer) - 8)
            self.assertIn(text, answer)
        port = await device.reverse("tcp:0", "tcp:9")
        self.assertEqual(await self.say(device, f"reverse:forward:tcp:{port};tcp:10"), b"OKAY")
        self.assertEqual([item[2] for item in await device.list_reverses()], ["tcp:10"])
        await device.close()
        while self.daemon._reverses:
            await self.pause()


class ShellServiceTests(ServiceTestCase):
    async def test_no_shell(self) -> None:
        device = await self.device(DaemonConfig(shell="/nonexistent/sh"))
        result = await device.shell("true")
        self.assertEqual(result.exit_code, 126)
        self.assertIn(b"cannot start", result.stderr)
        self.assertIn(b"cannot start", await device.exec_out("true"))

    async def test_garbage_in_a_shell_closes_it(self) -> None:
        device = await self.device(DaemonConfig(properties={"a": "b"}))
        for service in ("shell,v2,raw:sleep 1000", "shell,v2,raw:logcat"):
            stream = await device.open(service, stall_timeout=10)
            stream.write(b"\x05\xff\xff\xff\xff")
            await stream.read_all()
        while len(self.daemon.children):
            await self.pause()

    async def test_environment(self) -> None:
        folder = self.folder()
        device = await self.device(DaemonConfig(cwd=folder, environment={"EXTRA": "1"}))
        text = (await device.shell("env; pwd")).text
        for word in ("EXTRA=1", "HOME=", "USER=", "LOGNAME=", "HOSTNAME=", "SHELL=/", "TERM=dumb", folder):
            self.assertIn(word, text)

    async def test_hang_up_reaches_the_group(self) -> None:
        folder = self.folder()
        device = await self.device()
        session = await device.open_shell(
            f"trap 'echo hup > {folder}/hup; exit' HUP; (exec sleep 1000) & echo ready; wait", pty=False
        )
        self.assertEqual(await session.read(), (1, b"ready\n"))
        session.close()
        while len(self.daemon.children):
            await self.pause()
        self.assertEqual(Path(folder, "hup").read_text(), "hup\n")

    async def test_signals_that_the_daemon_ignores(self) -> None:
        """As a daemon under nohup, or in the background of a script, does."""
        for number in (signal.SIGHUP, signal.SIGINT):
            before = signal.signal(number, signal.SIG_IGN)
            self.addCleanup(signal.signal, number, before)
        device = await self.device()
        for pty_too in (False, True):
            session = await device.open_shell("echo $$; exec sleep 1000", pty=pty_too)
            while len(self.daemon.children) == 0 or not (await session.read()):
                await self.pause()
            session.close()
            while len(self.daemon.children):
                await self.pause()
        self.assertIs(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)

    async def test_stubborn_children_are_killed_when_the_daemon_stops(self) -> None:
        device = await self.device()
        session = await device.open_shell("trap '' HUP; echo ready; while :; do sleep 1; done", pty=False)
        await session.read()
        await self.daemon.stop()
        self.assertEqual(len(self.daemon.children), 0)

    async def test_children_are_reaped_without_pidfds(self) -> None:
        self.patch(os, "pidfd_open", self.no_pidfd)
        device = await self.device()
        self.assertEqual((await device.shell("exit 3")).exit_code, 3)
        while len(self.daemon.children):
            await self.pause()

    @staticmethod
    def no_pidfd(_pid: int) -> int:
        raise OSError(38, "Function not implemented")

    async def test_too_many_children(self) -> None:
        self.patch(__import__("anbox_tw.adb.daemon.process").adb.daemon.process, "MAX_CHILDREN", 0)
        device = await self.device()
        self.assertIn(b"running already", (await device.shell("true")).stderr)
        self.assertEqual((await device.open_shell(pty=True)).exit_code, None)


class CommandServiceTests(ServiceTestCase):
    async def test_redirections(self) -> None:
        folder = self.folder()
        device = await self.device(DaemonConfig(packages=f"{folder}/packages"))
        for line, out, err in (
            ("pm nonsense 2>/dev/null", b"Unknown command: nonsense\n", b""),
            ("pm nonsense >/dev/null", b"", b""),
            ("pm nonsense > /dev/null 2>&1", b"", b""),
            ("pm nonsense 2>&1", b"Unknown command: nonsense\n", b""),
            ("pm clear org.example.none 2>/dev/null", b"Failed\n", b""),
        ):
            result = await device.shell(line)
            self.assertEqual((result.stdout, result.stderr), (out, err), line)

    async def test_properties(self) -> None:
        device = await self.device(DaemonConfig(properties={"b": "2", "a": "1"}))
        self.assertEqual((await device.shell("getprop")).text, "[a]: [1]\n[b]: [2]\n")
        self.assertEqual((await device.shell("getprop none default")).text, "default\n")
        self.assertEqual((await device.shell("getprop a | cat")).exit_code, 0)
        self.assertEqual(await device.exec_out("getprop a"), b"1\n")

    async def test_log(self) -> None:
        logs = LogBuffer(limit=3)
        device = await self.device(DaemonConfig(logs=logs))
        for index in range(5):
            logs.write(f"line {index}")
        self.assertEqual((await device.shell("logcat -d")).text.count("line"), 3)
        self.assertEqual((await device.shell("logcat -t 1")).text.count("line"), 1)
        self.assertEqual((await device.shell("logcat -c")).exit_code, 0)
        self.assertEqual((await device.shell("logcat -d")).text, "")

    async def test_packages(self) -> None:
        folder = self.folder()
        device = await self.device(DaemonConfig(packages=f"{folder}/packages"))
        with zipfile.ZipFile(f"{folder}/x.apk", "w") as apk:
            apk.writestr("AndroidManifest.xml", '<manifest package="org.example.x"/>')
        for line, text, code in (
            (f"pm install {folder}/x.apk", "Success\n", 0),
            ("pm path org.example.x", f"package:{folder}/packages/org.example.x/base.apk\n", 0),
            ("pm path org.missing", "", 1),
            ("cmd package install-commit 99", "Failure [INSTALL_FAILED_INVALID_APK", 1),
            ("cmd package install-commit x", "Failure [INSTALL_FAILED_INTERNAL_ERROR", 1),
            ("cmd package install-write -S 5 99 x -", "Failure [INSTALL_FAILED_INTERNAL_ERROR", 1),
            ("cmd package install -S 0", "Failure [INSTALL_FAILED_INSUFFICIENT_STORAGE", 1),
            ("cmd package install -S x", "Failure [INSTALL_FAILED_INTERNAL_ERROR", 1),
            ("cmd package install", "Failure [INSTALL_FAILED_INVALID_APK", 1),
            ("cmd package install-incremental x", "Failure [", 1),
            ("cmd package install-create -S 10", "Success: created install session [1]", 0),
            ("cmd package install-abandon 1", "Success\n", 0),
            (f"pm install {folder}/missing", "Failure [INSTALL_FAILED_INTERNAL_ERROR", 1),
            ("pm nonsense", "Unknown command: nonsense", 255),
            ("pm", "Package manager", 0),
            ("pm uninstall ../../etc", "Failure [DELETE_FAILED", 1),
            ("cmd package install -S 500", "Failure [INSTALL_FAILED_INVALID_APK: the stream ended early", 1),
        ):
            result = await device.shell(line)
            self.assertEqual((result.text.startswith(text), result.exit_code), (True, code), (line, result))
        result = await device.shell("cmd nothing")
        self.assertEqual((result.exit_code, result.stderr), (20, b"cmd: Can't find service: nothing\n"))
        stream = await device.open("abb:package\0list\0packages")
        self.assertIn(b"org.example.x", await stream.read_all())
        leaving = await device.open("abb_exec:package\0install\0-S\x001000000")
        leaving.write(b"half")
        await leaving.drain()
        await self.pause()
        leaving.abort()
        while os.listdir(f"{folder}/packages") != ["org.example.x"]:
            await self.pause()

    async def test_no_packages_and_a_command_of_ones_own(self) -> None:
        class Greet(Command):
            def on_start(self) -> None:
                self.out(f"hello {self.arguments[0]}\n".encode())
                self.exit(4)

        device = await self.device(DaemonConfig(commands={"greet": Greet}))
        result = await device.shell("greet 'big world'")
        self.assertEqual((result.text, result.exit_code), ("hello big world\n", 4))
        stream = await device.open("abb_exec:package\0list\0packages")
        self.assertEqual(await stream.read_all(), b"cmd: Can't find service: package\n")

    async def test_control(self) -> None:
        done: list[object] = []
        control = DeviceControl(
            root=lambda: done.append("root"),
            unroot=lambda: done.append("unroot"),
            remount=lambda arguments: f"remounted {arguments}\n",
        )
        device = await self.device(DaemonConfig(control=control, features=("shell_v2",)))
        euid = 0

        self.patch(os, "geteuid", lambda: euid)
        self.assertEqual(await device.root(), "adbd is already running as root\n")
        self.assertEqual(await device.unroot(), "restarting adbd as non root\n")
        euid = 1000
        self.assertEqual(await device.root(), "restarting adbd as root\n")
        self.assertEqual(await device.unroot(), "adbd not running as root\n")
        self.assertEqual(await device.remount("-R"), "remounted -R\n")
        self.assertEqual(done, ["unroot", "root"])
        self.daemon.config.control = DeviceControl()
        self.assertEqual(await device.root(), "adbd cannot run as root in production builds\n")
        self.assertEqual(await device.remount(), "remount failed\n")
        euid = 0
        self.assertEqual(await device.unroot(), "adbd cannot give up root here\n")
        self.assertEqual(await device.tcpip(0), "invalid port 0\n")

    async def test_reconnect(self) -> None:
        device = await self.device()
        self.assertEqual(await self.say(device, "reconnect"), b"done")
        link: Any = device.link
        await link.transport.when_closed()
        await self.assertFailure(device.shell("true"), TransportClosed)


class ScreenServiceTests(ServiceTestCase):
    async def test_pictures(self) -> None:
        waiting: Deferred[Picture] = Deferred()
        answers: list[Any] = [Picture(2, 1, b"12345678"), waiting, Picture(3, 1, b"1234"), Picture(0, 0, b"")]
        device = await self.device(DaemonConfig(screen=lambda: answers.pop(0)))
        header = struct.pack("<13I", 1, 32, 8, 2, 1, 0, 8, 16, 8, 8, 8, 24, 8)
        self.assertEqual(await self.say(device, "framebuffer:"), header + b"12345678")
        asking = Deferred.fromCoroutine(self.say(device, "framebuffer:"))
        while len(answers) > 2:
            await self.pause()
        waiting.callback(Picture(2, 1, b"abcdefgh"))
        self.assertEqual(await asking, header + b"abcdefgh")
        for _ in range(2):
            await self.assertFailure(device.open("framebuffer:"), StreamRefused)


class JdwpServiceTests(ServiceTestCase):
    async def test_apps_and_odd_vms(self) -> None:
        name = f"\0anbox-tw-services-jdwp-{os.getpid()}"
        device = await self.device(DaemonConfig(jdwp=name))
        tracker = await device.open("track-app", stall_timeout=10)
        self.assertEqual(await tracker.read_exactly(4), b"0000")
        self.assertRaises(NetworkError, JdwpHub(reactor, name).start)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as odd:
            odd.connect(name)
            odd.send(b"\xff" * 50)
            while len(self.daemon.jdwp._vms):
                await self.pause()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as vm:
            vm.connect(name)
            info = ProcessInfo(9, debuggable=False, profileable=True, architecture="arm64")
            vm.send(info.encode())
            size = int(await tracker.read_exactly(4), 16)
            self.assertEqual(await tracker.read_exactly(size), b"\x0a\x0b" + info.encode())
            self.assertEqual(await device.jdwp(), [])
            await self.assertFailure(device.open("jdwp:9"), StreamRefused)
            vm.send(ProcessInfo(9, debuggable=True).encode())
            await tracker.read_exactly(int(await tracker.read_exactly(4), 16))
            self.assertEqual(await device.jdwp(), [9])
        self.assertEqual(await tracker.read_exactly(4), b"0000")


class CommandLineTests(SynchronousTestCase):
    def test_simple_commands(self) -> None:
        for line, words in (
            ("logcat -d", ["logcat", "-d"]),
            ("  exec logcat '*:S' x:V ", ["logcat", "*:S", "x:V"]),
            ("export ANDROID_LOG_TAGS=''; exec logcat -d", ["logcat", "-d"]),
            ('export ANDROID_LOG_TAGS="a b" ; exec logcat', ["logcat"]),
            ("cmd package 'install' '-S' '5'", ["cmd", "package", "install", "-S", "5"]),
            ("getprop a | grep b", None),
            ("getprop $x", None),
            ("getprop 'unfinished", None),
            ("", None),
        ):
            self.assertEqual(split_command(line), words, line)

    def test_real_programs_come_first(self) -> None:
        commands = {"sh": Command, "nosuchprogram": Command}
        self.assertIsNone(find_command(commands, "sh -c x", lambda: "/bin:/usr/bin"))
        self.assertIsNotNone(find_command(commands, "nosuchprogram", lambda: "/bin"))
        self.assertIsNone(find_command(commands, "other", lambda: "/bin"))


class ManifestTests(SynchronousTestCase):
    def apk(self, manifest: bytes) -> str:
        path: str = self.mktemp()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("AndroidManifest.xml", manifest)
        return path

    def binary(self, strings: list[str], *, utf8: bool) -> bytes:
        data, offsets = b"", []
        for text in strings:
            offsets.append(len(data))
            if utf8:
                raw = text.encode()
                data += bytes([len(text), len(raw)]) + raw + b"\0"
            else:
                data += struct.pack("<H", len(text)) + text.encode("utf-16-le") + b"\0\0"
        data += bytes(-len(data) % 4)
        start = 28 + 4 * len(strings)
        pool = struct.pack(
            "<HHIIIIII", 1, 28, start + len(data), len(strings), 0, 0x100 if utf8 else 0, start, 0
        )
        pool += struct.pack(f"<{len(strings)}I", *offsets) + data
        attributes = struct.pack("<IIIHBBI", 0xFFFFFFFF, 1, 2, 8, 0, 3, 2)
        element = struct.pack(
            "<HHIIIIIHHHHHH",
            0x0102,
            16,
            36 + len(attributes),
            1,
            0xFFFFFFFF,
            0xFFFFFFFF,
            0,
            20,
            20,
            1,
            0,
            0,
            0,
        )
        body = pool + element + attributes
        return struct.pack("<HHI", 3, 8, 8 + len(body)) + body

    def test_names(self) -> None:
        for utf8 in (True, False):
            manifest = self.binary(["manifest", "package", "org.example.app"], utf8=utf8)
            self.assertEqual(package_name(self.apk(manifest)), "org.example.app")
        for bad in (
            b"",
            b"\x03\x00\x08\x00",
            b"\x03\x00\x08\x00" + b"\xff" * 60,
            b"<manifest/>",
            b'<manifest package="../x"/>',
        ):
            self.assertRaises(PackageError, package_name, self.apk(bad))
        whole = self.binary(["manifest", "package", "org.example.app"], utf8=True)
        for cut in range(8, len(whole), 3):
            try:
                package_name(self.apk(whole[:cut]))
            except PackageError:
                pass
        self.assertRaises(PackageError, package_name, "/nonexistent")


class StreamInterfaceTests(ServiceTestCase):
    async def test_a_stream_is_a_twisted_transport(self) -> None:
        from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport

        device = await self.device()
        stream = await device.open("shell,v2,raw:cat")
        for interface in (ITransport, IConsumer, IPushProducer):
            verifyObject(interface, stream.transport)
        transport = stream.transport
        self.assertIn("shell", repr(transport))
        self.assertIn("shell", repr(stream.transport.getPeer()))
        self.assertIn("local", repr(stream.transport.getHost()))
        finished: Deferred[None] = stream.when_closed()
        stream.close()
        await finished
        transport.write(b"after the end")
        self.assertEqual(transport.queued, 0)
