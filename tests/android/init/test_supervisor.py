"""Init with real processes: a C daemon compiled here, its socket, its restarts, its end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from twisted.internet import defer, reactor, threads
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from anbox_tw.android._wire import Namespace
from anbox_tw.android.endpoints import AndroidServerEndpoint
from anbox_tw.android.errors import InitError, PropertyError, RcError
from anbox_tw.android.init import Init, PowerCommand, StatusService
from anbox_tw.android.init_tap import Options, build
from anbox_tw.android.localsocket import LocalAddress
from anbox_tw.android.properties import client
from anbox_tw.cli.rc import rc
from anbox_tw.errors import AlreadyRunning, NotRunning
from tests.support import REPOSITORY, need_root, need_tool

SOURCE = Path(__file__).with_name("daemon.c")


class InitCase(TestCase):
    timeout = 110

    def setUp(self) -> None:
        # short: socket paths end at 107 bytes
        self.directory = Path(tempfile.mkdtemp(prefix="atw"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.sockets = self.directory / "s"

    def compile(self) -> Path:
        program = self.directory / "daemon"
        subprocess.run([need_tool("gcc"), "-o", str(program), str(SOURCE)], check=True)
        # services run as other users
        self.directory.chmod(0o755)
        return program

    def start(self, text: str, **options: Any) -> Init:
        path = self.directory / "init.rc"
        path.write_text(text)
        path.chmod(0o644)
        init = Init(reactor, files=[str(path)], socket_directory=str(self.sockets), **options)
        self.events: list[dict[str, Any]] = []
        init.observers.append(self.events.append)
        init.startService()
        self.addCleanup(init.stopService)
        return init

    async def until(self, condition: Any, what: str = "", limit: float = 40.0) -> Any:
        deadline = time.monotonic() + limit
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"did not happen: {what or condition}; events {self.events[-12:]}")
            await deferLater(reactor, 0.01)

    async def state(self, init: Init, name: str, wanted: str) -> None:
        await self.until(
            lambda: name in init.services and init.services[name].state == wanted, f"{name} {wanted}"
        )

    def talk(self, name: str, *lines: bytes) -> defer.Deferred[list[bytes]]:
        def work() -> list[bytes]:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(40)
                for _ in range(2000):
                    try:
                        sock.connect(str(self.sockets / name))
                        break
                    except (FileNotFoundError, ConnectionRefusedError):
                        time.sleep(0.01)  # bound, and not yet listening
                replies = [sock.recv(100)]
                for line in lines:
                    sock.sendall(line)
                    replies.append(sock.recv(100))
                return replies

        return threads.deferToThread(work)


class DaemonTests(InitCase):
    async def test_a_c_daemon_is_served_killed_and_restarted_by_the_rules(self) -> None:
        need_root()
        program = self.compile()
        init = self.start(
            f"on boot\n class_start main\n"
            f"service echo {program}\n class main\n user nobody\n group inet net_admin 1234\n"
            f" socket echo stream 0660 root inet\n socket packets seqpacket 600 system\n"
            f' setenv GREETING "hi there"\n setenv WHO me\n writepid {self.directory}/pid {self.directory}/none/pid\n ioprio be 3\n'
            f" onrestart setprop test.restarted yes\n"
        )
        await self.state(init, "echo", "running")
        began = time.monotonic()
        (greeting,) = await self.talk("echo")
        pid = int(greeting)
        self.assertEqual(init.services["echo"].pid, pid)
        status = Path(f"/proc/{pid}/status").read_text()
        self.assertIn("Uid:\t9999\t9999\t9999\t9999", status)
        self.assertIn("Gid:\t3003\t3003\t3003\t3003", status)
        self.assertIn("Groups:\t1234 3005", status)
        ignored = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:"))
        # 32 and 33 are the C library's own: nobody can reset them when a parent has ignored them
        self.assertEqual(ignored & ~(3 << 31), 0)
        self.assertIn("Umask:\t0077", status)
        environment = dict(
            pair.split("=", 1) for pair in Path(f"/proc/{pid}/environ").read_text().split("\0") if pair
        )
        self.assertEqual(
            set(environment),
            {"PATH", "WHO", "GREETING", "ANBOX_SOCKET_DIR", "ANDROID_SOCKET_echo", "ANDROID_SOCKET_packets"},
        )
        descriptors = set(os.listdir(f"/proc/{pid}/fd"))
        expected = {"0", "1", "2", environment["ANDROID_SOCKET_echo"], environment["ANDROID_SOCKET_packets"]}
        self.assertTrue(expected <= descriptors, descriptors)
        self.assertLessEqual(len(descriptors - expected), 1)  # the client it just served
        self.assertEqual(os.getpgid(pid), pid)
        self.assertEqual((self.directory / "pid").read_text(), str(pid))
        for name, mode, uid, gid in (("echo", 0o660, 0, 3003), ("packets", 0o600, 1000, 0)):
            info = (self.sockets / name).stat()
            self.assertEqual((stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid), (mode, uid, gid))
        self.assertIn(
            "best-effort: prio 3",
            subprocess.run([need_tool("ionice"), "-p", str(pid)], capture_output=True, text=True).stdout,
        )
        self.assertEqual(init.store.get("init.svc.echo"), "running")
        # a file that cannot be written is told, and does not keep it from starting
        self.assertEqual(len(init.services["echo"].grants), 1)
        self.assertIn("none/pid", init.services["echo"].grants[0])
        # it dies together with what it left in its group, and is back five seconds after its start
        child = int((await self.talk("echo", b"fork"))[1])
        await self.talk("echo", b"die")
        await self.state(init, "echo", "restarting")
        self.assertEqual(init.services["echo"].last_exit, "exited with status 5")
        await self.until(lambda: not _alive(child), "the child to be killed")
        self.assertFalse((self.sockets / "echo").exists())
        self.assertEqual(init.store.get("test.restarted"), "yes")
        await self.state(init, "echo", "running")
        gap = time.monotonic() - began
        self.assertTrue(4.5 < gap < 6.5, gap)
        second = int((await self.talk("echo"))[0])
        self.assertNotEqual(second, pid)
        # a restart by hand is at once again only after five seconds; stop is for good
        await threads.deferToThread(client.set_property, "ctl.stop", "echo", directory=str(self.sockets))
        await self.state(init, "echo", "stopped")
        await threads.deferToThread(
            client.set_property, "ctl.start", "echo", directory=str(self.sockets), old=True
        )
        await self.state(init, "echo", "running")
        await self.talk("echo")
        await init.stopService()
        self.assertFalse(self.sockets.exists())
        self.assertFalse(_alive(second))

    async def test_kill_9_of_the_daemon(self) -> None:
        program = self.compile()
        init = self.start(
            f"on boot\n start echo\nservice echo {program}\n socket echo stream 600\n", strict=False
        )
        await self.state(init, "echo", "running")
        (greeting,) = await self.talk("echo")
        # as if it had run for long
        init.services["echo"].time_started = None
        os.kill(int(greeting), signal.SIGKILL)
        await self.until(lambda: init.services["echo"].starts == 2, "second start")
        self.assertIn("SIGKILL", init.services["echo"].last_exit)
        self.assertNotEqual((await self.talk("echo"))[0], greeting)
        await init.stopService()

    async def test_what_is_not_granted_is_told(self) -> None:
        init = self.start(
            "on boot\n class_start default\n"
            "service strange /bin/true\n oneshot\n user nosuchuser_\n socket a stream 600 nosuchuser_\n"
            'service fine /bin/sh -c "exit 7"\n oneshot\n seclabel u:r:x:s0\n socket '
            + "n"
            * 49
            + " stream 600\n"
            "service gone /no/such/program\nservice tty /bin/sh\n console\n",
            strict=False,
        )
        await self.until(
            lambda: init.services["fine"].state == "stopped" and init.services["fine"].starts, "fine"
        )
        await self.until(lambda: init.services["fine"].grants, "grants")
        self.assertEqual(init.services["fine"].last_exit, "exited with status 7")
        self.assertTrue(
            any("too long" in text for text in init.services["fine"].grants), init.services["fine"].grants
        )
        self.assertTrue(any("'nosuchuser_'" in text for text in init.services["strange"].grants))
        self.assertTrue(any("cannot find '/no/such/program'" in note for note in init.notes))
        self.assertTrue(any("requires console" in note for note in init.notes))
        json.dumps(init.describe())
        await init.stopService()

    async def test_strict_ends_the_child_with_127(self) -> None:
        init = self.start(
            "on boot\n start a\nservice a /bin/true\n oneshot\n user nosuchuser_\n", strict=True
        )
        await self.until(lambda: init.services["a"].starts and init.services["a"].state == "stopped")
        self.assertEqual(init.services["a"].last_exit, "exited with status 127")
        await init.stopService()

    async def test_a_program_that_cannot_be_executed(self) -> None:
        bad = self.directory / "bad"
        bad.write_text("no program")
        bad.chmod(0o755)
        init = self.start(f"on boot\n start a\nservice a {bad}\n oneshot\n")
        await self.until(lambda: any("execve" in text for text in init.services["a"].grants))
        await self.until(lambda: init.services["a"].last_exit)
        self.assertEqual(init.services["a"].last_exit, "exited with status 127")
        await init.stopService()

    async def test_arguments_are_expanded_as_the_service_starts(self) -> None:
        out = self.directory / "out"
        init = self.start(
            "on boot\n setprop demo.word told\n start a\n start b\n start c\n"
            f'service a /bin/sh -c "echo $$1 $$2 $$3 >{out}" sh ${{demo.word}} ${{demo.none:-else}} x$$y\n oneshot\n'
            "service b /bin/true ${demo.none}\n oneshot\n"
            "service c /bin/true ${demo.none\n oneshot\n"
        )
        await self.until(lambda: all(init.services[name].last_exit for name in "abc"))
        self.assertEqual(out.read_text(), "told else x$y\n")
        self.assertEqual(init.services["b"].last_exit, "exited with status 127")
        self.assertTrue(any("'demo.none' doesn't exist" in text for text in init.services["b"].grants))
        self.assertEqual(init.services["c"].last_exit, "exited with status 127")
        await init.stopService()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class ActionTests(InitCase):
    async def test_the_boot_sequence_with_commands(self) -> None:
        base = self.directory / "r"
        base.mkdir()
        (base / "proc").mkdir()
        init = self.start(
            "on early-init\n mkdir /made 0750\n write /made/file text\n copy /made/file /made/copy\n chmod 0604 /made/copy\n"
            " symlink /made/file /made/link\n write /proc/x y\n export WHERE here\n setprop a.b 1\n frobnicate\n"
            " mkdir /made/rest/none 0700\n rm /made/nothing\n rmdir /made\n mount tmpfs none /made\n insmod x\n hostname x\n restorecon /x\n"
            " chown 0 /made/file\n setprop ro.x ${a.b}-${unset:-d}\n setprop y ${nothing}\n loglevel 9\n setrlimit 7 99 99\n"
            f' exec - -- /bin/true\n exec - -- /bin/sh -c "echo $$WHERE $$(ulimit -n) > {self.directory}/ran"\n write /made/after y\n'
            " wait /made/after 1\n wait /made/never 0\n trigger mine\n start nothing\n exec --\n"
            "on mine\n setprop mine yes\n"
            "on boot\n setprop booted yes\n"
            "on property:a.b=1\n setprop seen.early yes\n"
            "on property:booted=yes && property:mine=yes\n setprop seen.both yes\n",
            root=str(base),
            strict=False,
        )
        await self.until(lambda: init.store.get("seen.both") == "yes", "both")
        self.assertEqual((base / "made/copy").read_text(), "text")
        self.assertEqual(stat.S_IMODE((base / "made/copy").stat().st_mode), 0o604)
        self.assertEqual(os.readlink(base / "made/link"), "/made/file")
        self.assertEqual((self.directory / "ran").read_text(), "here 99\n")
        self.assertEqual((base / "proc/x").read_text(), "y")  # below the root it is no kernel's
        self.assertEqual(init.store.get("ro.x"), "1-d")
        self.assertEqual(init.store.get("seen.early"), "yes")
        failed = [event["command"][0] for event in self.events if event["event"] == "command-failed"]
        self.assertEqual(
            failed,
            [
                "mkdir",
                "rm",
                "rmdir",
                "mount",
                "insmod",
                "hostname",
                "setprop",
                "loglevel",
                "wait",
                "start",
                "exec",
            ],
        )
        await init.stopService()

    async def test_no_number_is_too_large_and_no_mistake_ends_the_turn(self) -> None:
        (self.directory / "file").write_text("x")
        huge, octal = "9" * 400, "7" * 40
        init = self.start(
            "on boot\n"
            f" chmod {octal} {self.directory}/file\n mkdir {self.directory}/new {octal}\n"
            f" wait {self.directory}/never {huge}\n setrlimit 7 {huge} {huge}\n setrlimit 7 1024 -2\n"
            " loglevel 3\n start good\n setprop test.went on\n"
            "service good /bin/sleep 100\n disabled\n",
            strict=False,
        )

        def broken(_words: list[str]) -> None:
            raise RuntimeError("a mistake of ours")

        self.patch(init.builtins, "_do_loglevel", broken)
        await self.until(lambda: init.store.get("test.went") == "on", limit=10)
        failed = [event["command"][0] for event in self.events if event["event"] == "command-failed"]
        self.assertEqual(failed, ["chmod", "mkdir", "wait", "setrlimit", "setrlimit", "loglevel"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        await self.until(lambda: Path(f"/proc/{init.services['good'].pid}/comm").read_text() == "sleep\n")
        self.assertEqual(init.services["good"].grants, [])

    async def test_the_hosts_kernel_is_left_alone(self) -> None:
        init = self.start(
            "on early-init\n write /proc/sys/kernel/hostname x\n write /../proc/self/comm y\n chmod 700 /sys\n"
            f" symlink /proc/sys {self.directory}/link\n write {self.directory}/link/kernel/hostname x\n setprop done 1\n"
        )
        await self.until(lambda: init.store.get("done"))
        failed = [event["why"] for event in self.events if event["event"] == "command-failed"]
        self.assertEqual(len([why for why in failed if "not ours to change" in why]), 4, failed)
        self.assertEqual(os.stat("/sys").st_mode & 0o777, 0o555)
        await init.stopService()

    async def test_a_root_cannot_be_left(self) -> None:
        base = self.directory / "r"
        base.mkdir()
        os.symlink(self.directory, base / "out")
        init = self.start(
            "on early-init\n write /out/escaped x\n write /../escaped x\n mkdir /../../escaped2\n setprop done 1\n",
            root=str(base),
        )
        await self.until(lambda: init.store.get("done"))
        self.assertFalse((self.directory / "escaped").exists())
        self.assertTrue((base / "escaped").exists() and (base / "escaped2").exists())
        await init.stopService()

    async def test_late_files_and_system_properties(self) -> None:
        base = self.directory / "r"
        (base / "system/etc/init").mkdir(parents=True)
        (base / "system/etc/init/late.rc").write_text(
            "service late /bin/sleep 100\non nonencrypted\n start late\non fs\n setprop late.fs yes\n"
        )
        (base / "system/build.prop").write_text(
            "# comment\nro.build.x = y\nbad name=1\nimport /more.prop ro.only.*\n"
        )
        (base / "more.prop").write_text("ro.only.this=1\nnot.this=1\n")
        init = self.start("on fs\n load_system_props\n mount_all /fstab\n", root=str(base), strict=False)
        await self.state(init, "late", "running")
        self.assertEqual(init.store.get("late.fs"), "yes")
        self.assertEqual(
            (init.store.get("ro.build.x"), init.store.get("ro.only.this"), init.store.get("not.this")),
            ("y", "1", ""),
        )
        await init.stopService()

    async def test_a_critical_crash_loop_asks_for_recovery(self) -> None:
        asked: list[PowerCommand] = []
        init = self.start("on boot\n start c\nservice c /bin/false\n critical\n", on_power=asked.append)
        service = init.services["c"]
        for count in range(1, 6):
            await self.until(
                lambda count=count: service.starts == count and not service.running, f"crash {count}"
            )
            service.time_started = None
            init._schedule()
        self.assertEqual([(power.command, power.target) for power in asked], [("reboot", "recovery")])
        await init.stopService()

    async def test_power_commands(self) -> None:
        asked: list[PowerCommand] = []
        init = self.start("on boot\n setprop up 1\n", on_power=asked.append)
        for bad in ("halt", "", "rebootnow"):
            self.assertRaises(InitError, init.power, bad)
        init.store.set("sys.powerctl", "shutdown,userrequested")
        await self.until(lambda: asked)
        self.assertEqual(asked[0], ("shutdown", ""))
        await init.stopService()
        alone = self.start("on boot\n powerctl reboot,bootloader\n")
        await self.until(lambda: alone.reaper is None)
        self.assertFalse(self.sockets.exists())


class ReaperTests(InitCase):
    async def test_without_pid_descriptors_it_looks(self) -> None:
        def refuse(pid: int) -> int:
            raise OSError(38, "Function not implemented")

        self.patch(os, "pidfd_open", refuse)
        init = self.start(
            "on boot\n start a\n exec - -- /bin/true\n setprop after yes\nservice a /bin/false\n oneshot\n"
        )
        await self.until(lambda: init.services["a"].last_exit)
        self.assertEqual(init.services["a"].last_exit, "exited with status 1")
        await self.until(lambda: init.store.get("after"))
        await init.stopService()


class LifeTests(InitCase):
    async def test_a_directory_that_others_may_write_is_refused(self) -> None:
        self.sockets.mkdir()
        self.sockets.chmod(0o777)
        path = self.directory / "a.rc"
        path.write_text("")
        init = Init(reactor, files=[str(path)], socket_directory=str(self.sockets))
        self.assertRaises(InitError, init.startService)
        self.sockets.chmod(0o755)
        init.startService()
        await init.stopService()
        self.assertRaises(InitError, init.startService)
        self.assertTrue(self.sockets.exists())  # it was there before

    async def test_two_inits_do_not_share_a_directory(self) -> None:
        init = self.start("on boot\n setprop up 1\n")
        other = Init(reactor, files=init.files, socket_directory=str(self.sockets))
        with self.assertRaisesRegex(AlreadyRunning, str(os.getpid())):
            other.startService()
        await other.stopService()
        await init.stopService()
        other.startService()
        await other.stopService()

    async def test_a_file_that_is_not_there_leaves_nothing_behind(self) -> None:
        init = Init(reactor, files=["/no/such.rc"], socket_directory=str(self.sockets))
        self.assertRaises(RcError, init.startService)
        self.assertFalse(self.sockets.exists())
        await init.stopService()

    async def test_stop_waits_for_the_polite_and_kills_the_rest(self) -> None:
        init = self.start(
            "on boot\n class_start default\n"
            f"service polite /bin/sh -c \"trap 'echo bye > {self.directory}/bye; exit' TERM; while :; do sleep 0.05; done\"\n"
            f"service deaf /bin/sh -c \"trap '' TERM; echo > {self.directory}/deaf; while :; do sleep 0.05; done\"\n",
            shutdown_timeout=0.6,
            strict=False,
        )
        await self.until(lambda: (self.directory / "deaf").exists())
        await deferLater(reactor, 0.1)
        pids = [state.pid for state in init.services.values()]
        first, second = init.stopService(), init.stopService()
        await first
        await second
        self.assertEqual((self.directory / "bye").read_text(), "bye\n")
        self.assertEqual([_alive(pid) for pid in pids], [False, False])
        self.assertIn("SIGKILL", init.services["deaf"].last_exit)

    async def test_stop_ends_the_whole_group_of_a_oneshot(self) -> None:
        program = self.compile()
        init = self.start(
            f"on boot\n start once\nservice once {program}\n oneshot\n disabled\n socket echo stream 666\n",
            strict=False,
            adopt_orphans=False,
        )
        _, member = await self.talk("echo", b"deaf")
        await init.stopService()
        await self.until(lambda: not _alive(int(member)), "the group has ended", limit=5)

    async def test_stop_in_the_middle_of_exec_and_wait(self) -> None:
        for command in ("exec - -- /bin/sleep 100", "wait /never 100"):
            init = self.start(f"on boot\n {command}\n")
            await self.until(lambda init=init: init._blocked is not None)
            await init.stopService()

    async def test_the_rc_of_a_whole_options_line(self) -> None:
        path = self.directory / "a.rc"
        path.write_text("on boot\n setprop up ${given}\n")
        options = Options()
        options.parseOptions(
            [
                "--rc",
                str(path),
                "--socket-dir",
                str(self.sockets),
                "--property",
                "given=x",
                "--export",
                "A=b",
                "--grants",
                "lenient",
            ]
        )
        service: Any = build(options, reactor)
        service.startService()
        self.addCleanup(service.stopService)
        await self.until(lambda: service.init.store.get("up") == "x")
        lines = await threads.deferToThread(self.watch, 1)
        self.assertEqual(json.loads(lines[0])["properties"]["up"], "x")
        await self.until(lambda: not service.status.watchers, "the first watcher to be gone")
        watching = threads.deferToThread(self.watch, 2)
        await self.until(lambda: service.status.watchers, "a watcher")
        service.init.store.set("now", "1")
        self.assertEqual(json.loads((await watching)[1])["name"], "now")
        await service.stopService()
        self.assertFalse(self.sockets.exists())

    def run_rc(self, *words: str) -> Any:
        def run() -> Any:
            result = CliRunner().invoke(rc, [words[0], "--socket-dir", str(self.sockets), *words[1:]])
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            return result.output

        return threads.deferToThread(run)

    async def test_the_commands_on_a_running_init(self) -> None:
        init = self.start(
            "on boot\n start one\n start two\nservice one /bin/sleep 100\nservice two /bin/true\n oneshot\n user nosuchuser_\nfrob\n",
            strict=False,
        )
        path = LocalAddress("init_status", Namespace.RESERVED, str(self.sockets))
        status = StatusService(init, AndroidServerEndpoint(reactor, path))
        status.startService()
        init.before_release.append(status.stopService)
        await self.until(lambda: init.services["two"].grants and init.services["two"].state == "stopped")
        text = await self.run_rc("status")
        self.assertRegex(text, r"one +running +pid \d+")
        self.assertIn("not granted: user 'nosuchuser_': no such user or group", text)
        self.assertIn("invalid keyword 'frob'", text)
        self.assertEqual(
            json.loads(await self.run_rc("status", "--json"))["services"]["two"]["last_exit"],
            "exited with status 0",
        )
        await self.until(lambda: not status.watchers, "the others to be gone")
        # in a process of its own: the runner of commands redirects this one's output
        command = [sys.executable, "-m", "anbox_tw.cli", "rc", "watch", "--socket-dir", str(self.sockets)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        watching = threads.deferToThread(
            lambda: (
                subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=True, timeout=60
                ).stdout
            )
        )
        await self.until(lambda: status.watchers, "the watcher")
        await self.run_rc("setprop", "my.prop", "x y")
        self.assertEqual(await self.run_rc("getprop", "my.prop"), "x y\n")
        self.assertIn("[init.svc.one]: [running]\n", await self.run_rc("getprop"))
        await self.run_rc("stop", "one")
        await self.state(init, "one", "stopped")
        await self.run_rc("start", "one")
        await self.state(init, "one", "running")
        with self.assertRaises(PropertyError):
            await self.run_rc("restart", "nobody")
        await init.stopService()
        events = [json.loads(line) for line in (await watching).splitlines()]
        self.assertEqual([event["event"] for event in (events[0], events[-1])], ["state", "stopped"])
        self.assertIn(("one", "stopped"), [(event.get("name"), event.get("state")) for event in events])
        with self.assertRaises(NotRunning):
            await self.run_rc("status")

    def watch(self, count: int) -> list[bytes]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(40)
            sock.connect(str(self.sockets / "init_status"))
            with sock.makefile("rb") as file:
                return [file.readline() for _ in range(count)]


class PidOneTests(InitCase):
    def test_the_system_is_its_own_to_change(self) -> None:
        need_root()
        path = self.directory / "a.rc"
        mounted = self.directory / "mounted"
        path.write_text(
            f"on early-init\n hostname mine\n domainname mine.domain\n ifup lo\n mkdir {mounted} 0750\n"
            f" mount tmpfs tmpfs {mounted} nosuid nodev mode=0711\n mount tmpfs mtd@x {mounted}\n write {mounted}/inside x\n"
            " loglevel 4\n sysclktz 0\n"
            f' exec - -- /bin/sh -c "hostname; cat /proc/sys/kernel/domainname; ip -o link show lo; stat -c %a {mounted}"\n'
            " powerctl reboot,recovery\n"
        )
        process = subprocess.run(
            [need_tool("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--net", sys.executable,
             "-m", "anbox_tw.android.init", "--rc", str(path), "--socket-dir", str(self.sockets), "--system", "--output",
             "--no-status"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.assertEqual(process.returncode, 101, process.stderr)
        lines = process.stdout.splitlines()
        self.assertEqual((lines[0], lines[1], lines[-1]), ("mine", "mine.domain", "711"), process.stderr)
        self.assertIn(",UP", lines[2])
        self.assertIn("images are mounted by its backend", process.stderr)
        self.assertEqual(os.listdir(mounted), [])  # it was mounted in there only

    def test_its_services_end_with_an_init_that_is_killed_and_the_next_one_begins_afresh(self) -> None:
        program = self.compile()
        path = self.directory / "a.rc"
        path.write_text(
            f"on boot\n start echo\nservice echo {program}\n user nobody\n socket echo stream 666\n"
        )
        command = [
            sys.executable,
            "-m",
            "anbox_tw.android.init",
            "--rc",
            str(path),
            "--socket-dir",
            str(self.sockets),
        ]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        pids = []
        for number in (signal.SIGKILL, signal.SIGTERM):
            process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            with self.connect_echo() as sock:
                pids.append(int(sock.recv(100)))
            process.send_signal(number)
            process.wait(40)
            deadline = time.monotonic() + 40
            while _alive(pids[-1]):
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.01)
        self.assertNotEqual(pids[0], pids[1])
        self.assertEqual(os.listdir(self.sockets), [])  # the first one's directory stays, for it was killed

    def test_wrong_options(self) -> None:
        command = [sys.executable, "-m", "anbox_tw.android.init"]
        for words, said in (([], "at least one --rc"), (["--rc", "/no/such"], "no such file"), (["--rc", "/", "--grants", "x"], "strict"),
                            (["--rc", "/", "--property", "x"], "NAME=VALUE"), (["--rc", "/", "--socket-dir", "/" + "x" * 100], "fit")):  # fmt: skip
            done = subprocess.run(
                [*command, *words],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                capture_output=True,
                text=True,
                timeout=60,
            )
            self.assertEqual(done.returncode, 2, words)
            self.assertIn(said, done.stderr)

    def test_as_pid_1_it_reaps_strays_forwards_signals_and_ends_in_order(self) -> None:
        need_root()
        program = self.compile()
        path = self.directory / "a.rc"
        path.write_text(
            f"on boot\n class_start default\nservice echo {program}\n socket echo stream 666\n"
            f"service hup /bin/sh -c \"trap 'echo hup >> {self.directory}/hup' HUP; echo > {self.directory}/hup; while :; do sleep 0.05; done\"\n"
        )
        process = subprocess.Popen(
            [need_tool("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-m", "anbox_tw.android.init",
             "--rc", str(path), "--socket-dir", str(self.sockets), "--system"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(process.stderr.close)  # type: ignore[union-attr]
        self.events = []
        sock = self.connect_echo()
        self.assertLess(int(sock.recv(100)), 20)  # the container's own count
        sock.sendall(b"stray")
        sock.recv(100)
        (init_pid,) = _children(process.pid)
        before = set(_children(init_pid))
        sock.sendall(b"die")
        sock.close()
        # the stray, in a session of its own, is now a child of pid 1
        deadline = time.monotonic() + 60
        while len(set(_children(init_pid)) - before) != 1:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        (stray,) = set(_children(init_pid)) - before
        os.kill(stray, signal.SIGKILL)
        while _exists(stray):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        while not (self.directory / "hup").exists():
            time.sleep(0.01)
        os.kill(init_pid, signal.SIGHUP)
        while (self.directory / "hup").read_text().count("hup") != 1:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        os.kill(init_pid, signal.SIGTERM)
        self.assertEqual(process.wait(40), 0)
        self.assertFalse(self.sockets.exists())

    def connect_echo(self) -> socket.socket:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(40)
            with contextlib.suppress(OSError):
                sock.connect(str(self.sockets / "echo"))
                return sock
            sock.close()
            time.sleep(0.02)
        raise AssertionError("the daemon does not listen")


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
