"""Reading files, following imports, and the ``anbox rc`` commands."""

from __future__ import annotations

import json
import os
from pathlib import Path

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.android.errors import RcError
from anbox_tw.android.rc import RcLoader, is_ueventd_file, parse_ueventd, read_rc
from anbox_tw.android.rc import loader as loader_module
from anbox_tw.cli.rc import rc


class LoaderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.root.mkdir()

    def write(self, name: str, text: str | bytes) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def test_imports_come_after_the_file_in_order_below_the_root(self) -> None:
        main = self.write("init.rc", "import /init.${ro.hardware}.rc\nimport /etc/init\nservice first /a\n")
        self.write("init.goldfish.rc", "service second /b\nimport /deeper.rc\n")
        self.write("deeper.rc", "service third /c\nservice first /again\n")
        self.write("etc/init/b.rc", "service fifth /e\n")
        self.write("etc/init/a.rc", "service fourth /d\n")
        self.write("etc/init/inner/not.rc", "service never /n\n")
        loader = RcLoader(get={"ro.hardware": "goldfish"}.__getitem__, root=str(self.root))
        config = loader.load(main)
        self.assertEqual(list(config.services), ["first", "second", "third", "fourth", "fifth"])
        self.assertEqual(len(loader.files), 5)
        self.assertEqual([problem.location.line for problem in config.problems], [2])

    def test_a_failed_import_is_a_problem_of_its_line(self) -> None:
        main = self.write("init.rc", "import /none.rc\nimport /${unset}.rc\nimport /init.rc\nservice a /b\n")
        config = RcLoader(root=str(self.root)).load(main)
        self.assertEqual(
            [str(problem.location) for problem in config.problems], [f"{main}:{line}" for line in (1, 2, 3)]
        )
        self.assertIn("imports itself", config.problems[2].message)
        self.assertEqual(list(config.services), ["a"])

    def test_what_cannot_be_read_says_why(self) -> None:
        path = self.write("a.rc", "")
        os.symlink(path, self.root / "link.rc")
        os.mkfifo(self.root / "fifo.rc")
        big = self.write("big.rc", b"#" * (loader_module.MAX_FILE_BYTES + 1))
        for bad in ("none.rc", "link.rc", "fifo.rc", "."):
            with self.assertRaises(RcError):
                read_rc(str(self.root / bad))
        self.assertRaises(RcError, read_rc, big)
        os.chmod(path, 0o666)
        self.assertEqual(read_rc(path), "")
        self.assertRaises(RcError, read_rc, path, strict_modes=True)

    def test_bytes_that_are_not_utf_8_survive(self) -> None:
        path = self.write("a.rc", b"service a /b \xff\xfe\n")
        service = RcLoader().load(path).services["a"]
        self.assertEqual(os.fsencode(service.arguments[1]), b"\xff\xfe")

    def test_no_more_files_than_the_limit(self) -> None:
        self.patch(loader_module, "MAX_FILES", 2)
        for name in "abc":
            self.write(f"d/{name}.rc", "")
        self.assertRaises(RcError, RcLoader().load, str(self.root / "d"))


UEVENTD = """\
subsystem adf
	devname uevent_devname
subsystem sound
    devname uevent_devpath
    dirname /dev/snd
/dev/null 0666 root root
/dev/log/* 0666 root log
/sys/devices/virtual/input/input* enable 0660 root input
"""


class UeventdTests(SynchronousTestCase):
    def test_a_good_file(self) -> None:
        config = parse_ueventd(UEVENTD)
        self.assertEqual(config.problems, [])
        self.assertEqual(
            [(item.name, item.dirname) for item in config.subsystems], [("adf", ""), ("sound", "/dev/snd")]
        )
        self.assertEqual(
            [(rule.path, rule.attribute, rule.mode, rule.uid, rule.gid) for rule in config.rules],
            [
                ("/dev/null", "", 0o666, 0, 0),
                ("/dev/log/*", "", 0o666, 0, 1007),
                ("/sys/devices/virtual/input/input*", "enable", 0o660, 0, 1004),
            ],
        )

    def test_errors_name_their_lines(self) -> None:
        text = 'subsystem\ndevname x\nsubsystem a\n devname x\n dirname /x\n devname\n/dev/a 8 root root\n/dev/a 6 x root\n/dev/a 6 root x\n/dev/a 6\n/sys/a 6 root root\ndirname /dev/a\n"'
        problems = parse_ueventd(text).problems
        self.assertEqual(
            [problem.location.line for problem in problems], [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
        )

    def test_files_are_known_by_name(self) -> None:
        self.assertTrue(is_ueventd_file("/vendor/ueventd.rc") and is_ueventd_file("/ueventd.goldfish.rc"))
        self.assertFalse(is_ueventd_file("/init.rc"))


class CommandTests(LoaderTests):
    def run_rc(self, *arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(rc, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    def test_check_reports_file_and_line_and_exits_with_1(self) -> None:
        path = self.write("bad.rc", "on boot\n frob\n start x\n")
        code, out, err = self.run_rc("check", path)
        self.assertEqual((code, out), (1, f"{path}:2: error: invalid keyword 'frob'\n"))
        self.assertIn("1 errors, 0 warnings", err)

    def test_check_of_good_files_is_quiet(self) -> None:
        self.write("good.rc", "on boot\n start x\n")
        self.write("ueventd.rc", UEVENTD)
        code, out, err = self.run_rc("check", "-q", str(self.root))
        self.assertEqual((code, out, err), (0, "", ""))
        code, out, err = self.run_rc("check", str(self.root))
        self.assertIn("2 files: 0 services, 1 actions with 1 commands, 5 device rules", err)

    def test_whole_and_strict(self) -> None:
        path = self.write("good.rc", "on boot\n start x\n")
        self.assertEqual(self.run_rc("check", "--whole", path)[0], 0)
        code, out, _ = self.run_rc("check", "--whole", "-W", path)
        self.assertEqual((code, out), (1, f"{path}:2: warning: start: no such service 'x'\n"))

    def test_json(self) -> None:
        path = self.write("bad.rc", "frob\nservice a\n")
        code, out, _ = self.run_rc("check", "--json", path)
        document = json.loads(out)
        self.assertEqual((code, document["errors"], len(document["problems"])), (1, 1, 2))
        self.assertEqual(document["problems"][1]["line"], 2)

    def test_imports_with_a_root_and_properties(self) -> None:
        self.write("init.x.rc", "service imported /b\n")
        path = self.write("init.rc", "import /init.${ro.hardware}.rc\n")
        code, out, _ = self.run_rc("print", "--root", str(self.root), "-p", "ro.hardware=x", path)
        self.assertEqual(code, 0)
        self.assertIn("service imported /b\n", out)
        self.assertEqual(self.run_rc("check", "--root", str(self.root), path)[0], 1)
        self.assertEqual(self.run_rc("check", "-p", "novalue", path)[0], 2)

    def test_bytes_that_are_no_text_are_reported_and_printed(self) -> None:
        path = self.write("a.rc", b"frob\xff x\non boot\n frob\xff\n write /a \xfe\n")
        code, out, _ = self.run_rc("check", path)
        self.assertEqual((code, out.count("\\udcff")), (1, 1))
        result = CliRunner().invoke(rc, ["print", path])
        self.assertEqual(result.stdout_bytes, b"on boot\n    write /a \xfe\n")

    def test_print_gives_a_file_that_reads_the_same(self) -> None:
        path = self.write("a.rc", 'on boot\n write /x "a b"\n frob\n')
        code, out, err = self.run_rc("print", path)
        self.assertEqual((code, out), (1, 'on boot\n    write /x "a b"\n'))
        self.assertIn(":3: error", err)
        with self.assertRaises(RcError):
            self.run_rc("print", self.write("ueventd.rc", UEVENTD))
