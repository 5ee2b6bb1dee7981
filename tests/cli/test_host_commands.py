"""``anbox system-info``, ``check-features``, ``completion``, ``man`` and ``bugreport``: nothing needs to run for them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.cli import cli, host
from anbox_tw.cli._main import COMMANDS
from anbox_tw.cli.bugreport import scrub
from anbox_tw.cli.man import pages
from anbox_tw.errors import HostLacks
from tests.cli.sessions import CommandCase
from tests.session.guest import until
from tests.support import REPOSITORY, need_tool

X86 = "processor\t: 0\nmodel name\t: Test CPU\nflags\t\t: fpu ssse3 sse4_1 sse4_2\n\nprocessor\t: 1\nflags\t\t: none\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\nHardware\t: Board\n"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


class HostTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ah-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def cpuinfo(self, text: str) -> str:
        path = self.directory / "cpuinfo"
        path.write_text(text)
        return str(path)

    def test_the_first_processor_counts(self) -> None:
        self.assertEqual(
            host.read_processor(self.cpuinfo(X86), "x86_64"),
            {"arch": "x86_64", "brand": "Test CPU", "features": ["fpu", "sse4_1", "sse4_2", "ssse3"]},
        )
        arm = host.read_processor(self.cpuinfo(ARM), "aarch64")
        self.assertEqual(
            (arm["brand"], arm["features"], host.missing_features(arm)), ("Board", ["asimd", "fp"], [])
        )

    def test_check_features(self) -> None:
        good = {"arch": "x86_64", "brand": "New", "features": ["sse4_1", "sse4_2", "ssse3"]}
        self.patch(host, "read_processor", lambda: good)
        self.assertEqual(
            invoke("check-features").output, "Your computer does meet all requirements to run Anbox\n"
        )
        self.assertEqual(json.loads(invoke("check-features", "--json").output)["missing"], [])
        self.patch(host, "read_processor", lambda: {**good, "features": ["ssse3"]})
        result = invoke("check-features", "--json")
        assert isinstance(result.exception, HostLacks)
        self.assertIn("sse4_1, sse4_2", result.exception.cause)
        self.assertEqual(json.loads(result.output)["missing"], ["sse4_1", "sse4_2"])

    def test_system_info(self) -> None:
        told = json.loads(invoke("system-info", "--json").output)
        self.assertEqual(list(told), ["version", "snap-revision", "cpu", "os", "kernel", "graphics"])
        self.assertIn("Linux version", told["kernel"]["version"])
        self.assertEqual(sorted(told["graphics"])[:2], ["egl", "gles2"])
        lines = invoke("system-info", "--no-graphics").output.splitlines()
        self.assertIn("graphics: null", lines)

    def test_yaml(self) -> None:
        value = {"a": None, "b": {"c": [1, "x: y"], "d": []}, "e": True, "f": 'q"', "g": {}}
        self.assertEqual(
            list(host.as_yaml(value)),
            ["a: null", "b:", "  c:", "    - 1", '    - "x: y"', "  d: []", "e: true", 'f: "q\\""', "g: {}"],
        )

    def test_graphics_that_fail_are_told(self) -> None:
        for script, words in (
            ("raise SystemExit('EGL has no display')", "no display"),
            ("import os; os.abort()", "it crashed"),
            ("print('driver noise')", "nothing that can be read"),
            ("import time; time.sleep(600)", "timed out"),
        ):
            self.patch(host, "GRAPHICS", script)
            self.patch(host, "GRAPHICS_LIMIT_S", 1.0 if "sleep" in script else 60.0)
            self.assertIn(words, host._graphics()["problem"])


class CompletionTests(SynchronousTestCase):
    def complete(self, words: str, number: int, **environment: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "anbox_tw.cli"],
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "_ANBOX_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(number),
                **environment,
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    def test_commands_options_and_instances(self) -> None:
        runtime = tempfile.mkdtemp(prefix="ac-")
        self.addCleanup(shutil.rmtree, runtime)
        Path(runtime, "anbox/instances/second").mkdir(parents=True)
        self.assertEqual(self.complete("anbox task", 1), ["tasks"])
        self.assertIn("resize", self.complete("anbox tasks ", 2))
        self.assertIn("--component", self.complete("anbox launch --", 2))
        self.assertEqual(self.complete("anbox apps -i s", 3, XDG_RUNTIME_DIR=runtime), ["second"])
        self.assertEqual(self.complete("anbox apps -i s", 3, XDG_RUNTIME_DIR="/nonexistent"), [])
        self.assertIn("magnetic-field", self.complete("anbox sensor get m", 3))

    def test_scripts(self) -> None:
        bash = need_tool("bash")
        for shell in ("bash", "zsh", "fish"):
            result = invoke("completion", shell)
            self.assertIn(f"_ANBOX_COMPLETE={shell}_complete", result.output)
        script = invoke("completion", "bash").output
        done = subprocess.run(
            [bash, "-c", f"{script}\ncomplete -p anbox"], capture_output=True, text=True, check=True
        )
        self.assertIn("_anbox_completion", done.stdout)
        self.assertEqual(invoke("completion", "tcsh").exit_code, 2)


class ManTests(SynchronousTestCase):
    def test_every_command_has_a_page_that_groff_takes(self) -> None:
        groff = need_tool("groff")
        directory = tempfile.mkdtemp(prefix="am-")
        self.addCleanup(shutil.rmtree, directory)
        result = invoke("man", "--directory", directory)
        self.assertEqual(result.exit_code, 0, result.output)
        files = sorted(Path(directory).iterdir())
        names = {file.name for file in files}
        self.assertEqual({f"anbox-{name}.1" for name in COMMANDS} - names, set())
        self.assertIn("anbox-tasks-resize.1", names)
        done = subprocess.run(
            [groff, "-man", "-Tutf8", "-P-cbou", "-ww", *map(str, files)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        wrong = [
            line for line in done.stderr.splitlines() if "adjust line" not in line and "break" not in line
        ]
        self.assertEqual(wrong, [])
        for words in ("EXIT STATUS", "anbox launch org.example.notes", "LEFT,TOP,RIGHT,BOTTOM"):
            self.assertTrue(words in done.stdout.replace("\u2010", "-"), words)

    def test_one_page(self) -> None:
        self.assertIn('.TH "ANBOX\\-TASKS\\-LIST" 1', invoke("man", "tasks", "list").output)
        self.assertTrue(".BR anbox\\-up (1)" in invoke("man").output)
        self.assertEqual(invoke("man", "nosuch").exit_code, 2)
        self.assertEqual(invoke("man", "up", "--directory", "/tmp").exit_code, 2)
        self.assertNotEqual(invoke("man", "--directory", "/proc/x").exit_code, 0)

    def test_help_is_worth_reading(self) -> None:
        """Every command says in a sentence what it does."""
        short = [name for name, text in pages() if len(text.split(".SH DESCRIPTION")[1].split(".SH")[0]) < 15]
        self.assertEqual(short, [])


class ScrubTests(SynchronousTestCase):
    def test_what_is_taken_out(self) -> None:
        home = tempfile.mkdtemp(prefix="as-")
        self.addCleanup(shutil.rmtree, home)
        Path(home, ".emulator_console_auth_token").write_text("s3cr3tTok3n\n")
        clean = scrub(home)
        for text, expected in (
            (f"file {home}/x and {home}", "file ~/x and ~"),
            (f"{home}ly", f"{home}ly"),
            ("auth s3cr3tTok3n ok", "auth [console token] ok"),
            ("Authorization: abcdefgh", "Authorization: [left out]"),
            ("Bearer abcdefgh.ijk", "Bearer [left out]"),
            ("password=hunter222;x", "password=[left out];x"),
            ("https://me:pw@host/x", "https://[left out]@host/x"),
            ("a\n-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\nb", "a\n[key left out]\nb"),
            ("an ordinary line", "an ordinary line"),
        ):
            self.assertEqual(clean(text), expected)
        self.assertEqual(scrub("/")("/x"), "/x")


class SessionReportTests(CommandCase):
    async def test_a_report_tells_all_but_secrets(self) -> None:
        guest = await self.boot()
        guest.send(application_list_update={"applications": [{"name": "Private", "package": "org.private"}]})
        await self.session.clipboard.set_text("from the clipboard")
        self.session.device.location.push_sentence("$GPGGA,1*00")
        await self.anbox("sms", "send", "0301234567", "a private message")
        logs = Path(self.runtime, "data/logs")
        logs.mkdir(parents=True)
        (logs / "session.log").write_text(
            "x" * (2 << 20) + f"\nAuthorization: abcdefgh {Path.home()}/f\nthe end\n"
        )
        lock = Path(self.runtime, "anbox/up.lock")
        lock.write_text(
            json.dumps({"pid": os.getpid(), "command": "up", "data_path": f"{self.runtime}/data"})
        )
        import fcntl

        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            path = f"{self.runtime}/report.zip"
            self.assertEqual(await self.anbox("bugreport", "-o", path), f"{path}\n")
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        with zipfile.ZipFile(path) as archive:
            content = {name: archive.read(name).decode() for name in archive.namelist()}
        everything = "\n".join(content.values())
        for secret in ("private", "0301234567", "from the clipboard", "abcdefgh", "GPGGA"):
            self.assertNotIn(secret, everything)
        log = content["instances/default/logs/session.log"]
        self.assertTrue(log.endswith("Authorization: [left out] ~/f\nthe end\n"), log[-200:])
        self.assertLess(len(log), (1 << 20) + 100)
        self.assertEqual(json.loads(content["instances/default/session.json"])["level"], "booted")
        self.assertEqual(json.loads(content["instances/default/device.json"])["battery"]["capacity"], 100)
        self.assertEqual(json.loads(content["report.json"])["problems"], [])
        self.assertIn("backends", json.loads(content["doctor.json"]))
        self.assertIn("File exists", await self.anbox("bugreport", "-o", path, code=2))

    async def test_top(self) -> None:
        guest = await self.boot()
        await guest.channel.close()
        (one,) = json.loads(await self.anbox("top", "--once", "--json"))
        self.assertEqual((one["instance"], one["level"]), ("default", "booted"))
        self.assertGreaterEqual(one["stats"]["connections"]["control"], 1)
        self.assertEqual(
            set(one["rates"]), {"to_guest", "from_guest", "session_cpu_percent", "container_cpu_percent"}
        )
        self.assertGreater(one["session_use"]["rss"], 1 << 20)
        text = await self.anbox("top", "--once")
        self.assertIn("emulator-", text)
        live = self.start("top", "--interval", "0.1", terminal=True)
        await until(lambda: live.out.count("INSTANCE") >= 2 and "emulator-" in live.out)
        live.interrupt()
        self.assertEqual(await live.ended, 130)
        # The terminal is given back as it was: out of the other screen, with its cursor.
        for code in ("\x1b[?1049l", "\x1b[?25h"):
            self.assertIn(code, live.out[-60:])
        looks = self.start("top", "--json", "--interval", "0.1")
        await until(lambda: looks.out.count("\n") >= 3)
        looks.kill()
        await looks.ended
        await self.session.stopService()
        self.assertIn("no instance runs", await self.anbox("top", "--once"))


class RateTests(SynchronousTestCase):
    def test_rates_are_differences(self) -> None:
        from anbox_tw.cli.top import _size, add_rates, table_of, tree, usage

        def sample(time: float, adb: int, forwards: int, cpu: float, pid: int = 7) -> dict[str, Any]:
            use = {"processes": 1, "cpu_s": cpu, "rss": 1000}
            return {
                "instance": "a",
                "level": "ready",
                "pid": pid,
                "time": time,
                "session_use": use,
                "container_use": use,
                "stats": {
                    "connections": {"qemu_pipe": 2},
                    "adb": {"connections": 1, "to_guest": adb, "from_guest": 0},
                    "forwards": {"connections": 3, "to_guest": forwards, "from_guest": 500},
                },
            }

        now = [sample(12.0, 3000, 100, 4.5)]
        add_rates(now, {"a": sample(10.0, 1000, 100, 4.0)})
        self.assertEqual(
            now[0]["rates"],
            {"to_guest": 1000, "from_guest": 0, "session_cpu_percent": 25.0, "container_cpu_percent": 25.0},
        )
        for before in ({}, {"a": sample(10.0, 0, 0, 0, pid=8)}, {"a": {"instance": "a", "level": "unknown"}}):
            again = [sample(12.0, 0, 0, 0)]
            add_rates(again, before)
            self.assertIsNone(again[0]["rates"])
        unknown = {"instance": "b", "level": "unknown", "note": "x\x1b", "rates": None}
        self.assertEqual(table_of([*now, unknown]).row_count, 2)
        self.assertEqual(
            [_size(value) for value in (None, 5, 1500, 2e12)], ["-", "5 B", "1.5 kB", "2000.0 GB"]
        )
        self.assertIn(os.getpid(), tree(os.getppid()) + [os.getpid()])
        self.assertEqual(usage([0x7FFFFFFF])["processes"], 0)
        self.assertEqual((tree(0), usage([os.getpid()])["processes"]), ([], 1))
