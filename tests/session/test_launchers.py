"""Launchers: names, text and files; the text is judged by desktop-file-validate and run by GLib's own launcher."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.session import launchers
from anbox_tw.session._files import write_atomically
from anbox_tw.session.bridge import Application
from anbox_tw.session.launchers import (
    LauncherDirectory,
    applications_directory,
    desktop_entry,
    file_stem,
    is_png,
)
from tests.support import need_tool

NASTY = (
    'He said "hi" \\ `id` $HOME 100% %u\nExec=evil\r\t; & | < > \' ~ # * ? ( ) [x] \u2028 ü 漢 \x1b[31m \x7f',
    " leading and trailing ",
    "",
    "%f",
    "-n",
    "=",
    "a=b",
)


def png(width: int = 1, height: int = 1) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


class TextTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="al-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def app(self, **changes: Any) -> Application:
        return Application(**{"name": "Notes", "package": "org.example.notes", **changes})

    def test_the_keys(self) -> None:
        app = self.app(
            component=".Main", intent={"action": "a.b.MAIN", "uri": "x:y?z=1&q", "type": "text/plain"}
        )
        self.assertEqual(
            desktop_entry(
                app, ["/usr/bin/anbox", "launch", "--instance=two"], "/i/a b.png", "two"
            ).splitlines(),
            [
                "[Desktop Entry]",
                "Version=1.0",
                "Type=Application",
                "Name=Notes",
                "Exec=/usr/bin/anbox launch --instance=two --action=a.b.MAIN --type=text/plain "
                '"--uri=x:y?z=1&q" --package=org.example.notes --component=.Main',
                "Terminal=false",
                "Categories=Utility;X-Anbox;",
                "StartupWMClass=org.example.notes",
                "X-Anbox-Instance=two",
                "X-Anbox-Package=org.example.notes",
                "Icon=/i/a b.png",
            ],
        )

    def test_desktop_file_validate_has_nothing_to_say(self) -> None:
        tool = need_tool("desktop-file-validate")
        paths = []
        for number, text in enumerate(NASTY):
            app = self.app(name=text, package=f"a.{text}", component=text, intent={"uri": text, "type": text})
            path = self.directory / f"{number}.desktop"
            path.write_text(
                desktop_entry(app, ["/opt/a b/anbox", "launch"], "/tmp/x.png" * (number % 2), "default")
            )
            paths.append(str(path))
        done = subprocess.run([tool, *paths], capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        (self.directory / "bad.desktop").write_text("[Desktop Entry]\nType=Application\nExec=x\n")
        bad = subprocess.run([tool, str(self.directory / "bad.desktop")], capture_output=True, check=False)
        self.assertNotEqual(bad.returncode, 0)

    def test_glib_runs_it_with_the_arguments_as_they_were(self) -> None:
        """Quoting survives a desktop's own parser."""
        gio = need_tool("gio")
        program = self.directory / "a program"
        program.write_text(
            f"#!{sys.executable}\nimport json, os, sys\n"
            "path = os.path.join(os.path.dirname(sys.argv[0]), 'said')\n"
            "open(path + '.new', 'w').write(json.dumps(sys.argv[1:]))\nos.rename(path + '.new', path)\n"
        )
        program.chmod(0o755)
        said = self.directory / "said"
        for text in NASTY:
            # Control characters are left out, by rule.
            expected = "".join(char for char in text if char not in "\n\r\t\x1b\x7f\u2028")
            app = self.app(component=text, intent={"uri": text})
            entry = self.directory / "x.desktop"
            entry.write_text(desktop_entry(app, [str(program), "launch"], "", "default"))
            done = subprocess.run(
                [gio, "launch", str(entry)],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
                env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": "unix:path=/nonexistent"},
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            deadline = time.monotonic() + 60
            while not said.exists():
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.01)
            words = ["launch"] + [f"--uri={expected}"] * bool(text) + ["--package=org.example.notes"]
            words += [f"--component={expected}"] * bool(text)
            self.assertEqual(json.loads(said.read_text()), words)
            said.unlink()

    @settings(max_examples=200)
    @given(st.text(max_size=60), st.text(max_size=60))
    def test_a_line_is_a_line_whatever_the_guest_says(self, name: str, uri: str) -> None:
        text = desktop_entry(self.app(name=name, intent={"uri": uri}), ["anbox"], "", "default")
        lines = text.split("\n")
        self.assertEqual([line.partition("=")[0] for line in lines[1:4]], ["Version", "Type", "Name"])
        self.assertEqual((len(lines), len(text.splitlines())), (11, 10))
        self.assertTrue(lines[3].partition("=")[2])

    @settings(max_examples=300)
    @given(st.text(max_size=260), st.text(max_size=260))
    def test_no_two_packages_share_a_file(self, one: str, other: str) -> None:
        stems = {file_stem(one), file_stem(other), file_stem(one, "two"), file_stem(other, "two")}
        self.assertEqual(len(stems), 2 if one == other else 4)
        for stem in stems:
            self.assertLessEqual(len(stem.encode()), 250)
            self.assertRegex(stem, r"\A[A-Za-z0-9_+@-]+\Z")

    def test_names(self) -> None:
        self.assertEqual(file_stem("org.example.my_app"), "anbox-org-example-my_app")
        self.assertEqual(file_stem("a-b"), "anbox-a+2db")
        self.assertEqual(file_stem("../x"), "anbox---+2fx")
        self.assertEqual(file_stem("a.b", "two"), "anbox@two+a-b")
        self.assertNotEqual(file_stem("c", "a-b"), file_stem("b.c", "a"))
        long = ["x" * 400 + end for end in "ab"]
        self.assertNotEqual(*map(file_stem, long))

    def test_directories(self) -> None:
        for environ, expected in (
            ({"XDG_DATA_HOME": "/d", "HOME": "/h"}, "/d/applications/anbox"),
            ({"XDG_DATA_HOME": "d", "HOME": "/h"}, "/h/.local/share/applications/anbox"),
            ({"HOME": "/h", "ANBOX_NO_DESKTOP_SUBDIR": "1"}, "/h/.local/share/applications"),
            ({"HOME": "/h", "ANBOX_NO_DESKTOP_SUBDIR": ""}, "/h/.local/share/applications/anbox"),
        ):
            self.assertEqual(applications_directory(environ), expected)

    def test_only_png_is_png(self) -> None:
        good = png()
        self.assertTrue(is_png(good))
        for bad in (
            b"",
            b"\x89PNG\r\n\x1a\n",
            good[:-1],
            b"GIF89a" + good,
            png(0),
            png(1, 1 << 30),
            good[:40],
        ):
            self.assertFalse(is_png(bad), bad[:20])
        flipped = bytearray(good)
        flipped[17] ^= 1
        self.assertFalse(is_png(bytes(flipped)))


class DirectoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.top = tempfile.mkdtemp(prefix="al-")
        self.addCleanup(shutil.rmtree, self.top)
        self.path = Path(self.top, "applications/anbox")
        self.launchers = LauncherDirectory(str(self.path), "default", ["anbox", "launch"])

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self.path.iterdir())

    def test_store_change_remove(self) -> None:
        app = Application("A", "a.b", icon=png())
        self.launchers.store(app)
        self.assertEqual(self.names(), ["anbox-a-b.desktop", "anbox-a-b.png"])
        self.assertIn(f"Icon={self.path}/anbox-a-b.png\n", (self.path / "anbox-a-b.desktop").read_text())
        before = [entry.stat().st_ino for entry in self.path.iterdir()]
        self.launchers.store(app)
        self.assertEqual(
            [entry.stat().st_ino for entry in self.path.iterdir()], before, "written without need"
        )
        # The icon of last time stays while the guest sends none.
        self.launchers.store(Application("A2", "a.b"))
        text = (self.path / "anbox-a-b.desktop").read_text()
        self.assertIn("Name=A2\n", text)
        self.assertIn("Icon=", text)
        self.launchers.remove("a.b")
        self.launchers.remove("a.b")
        self.assertEqual(self.names(), [])

    def test_an_icon_that_is_none_makes_no_file(self) -> None:
        for icon in (b"", b"no picture"):
            self.launchers.store(Application("A", "a.b", icon=icon))
            self.assertEqual(self.names(), ["anbox-a-b.desktop"])
            self.assertNotIn("Icon", (self.path / "anbox-a-b.desktop").read_text())

    def test_sweep_takes_the_instances_own_alone(self) -> None:
        other = LauncherDirectory(str(self.path), "two", ["anbox", "launch"])
        self.assertEqual(self.launchers.sweep(set()), [])
        for directory in (self.launchers, other):
            for package in ("a.b", "a-b", "gone"):
                directory.store(Application(package, package, icon=png()))
        (self.path / "anbox-mine.desktop").write_text(
            "[Desktop Entry]\nType=Application\nName=x\nExec=true\n"
        )
        (self.path / "anbox-notes.txt").write_text("x")
        (self.path / "anbox-old.desktop").write_text("[Desktop Entry]\nName=x\nCategories=Anbox;\n")
        (self.path / "anbox-link.desktop").symlink_to(self.path / "anbox-gone.desktop")
        self.assertEqual(self.launchers.sweep({"a.b", "a-b"}), ["anbox-gone.desktop", "anbox-old.desktop"])
        self.assertEqual(
            self.names(),
            sorted(
                [
                    *("anbox-a-b.desktop", "anbox-a-b.png", "anbox-a+2db.desktop", "anbox-a+2db.png"),
                    *("anbox@two+a-b.desktop", "anbox@two+a-b.png", "anbox@two+a+2db.desktop"),
                    *("anbox@two+a+2db.png", "anbox@two+gone.desktop", "anbox@two+gone.png"),
                    *("anbox-mine.desktop", "anbox-notes.txt", "anbox-link.desktop"),
                ]
            ),
        )

    def test_the_program_is_ours_wherever_it_is(self) -> None:
        beside = Path(sys.executable).parent / "anbox"
        self.assertEqual(
            launchers.anbox_program()[0], str(beside) if beside.exists() else launchers.anbox_program()[0]
        )
        self.patch(sys, "executable", f"{self.top}/python")
        self.patch(shutil, "which", lambda name: None)
        self.assertEqual(launchers.anbox_program(), [f"{self.top}/python", "-m", "anbox_tw.cli"])

    def test_a_failed_write_leaves_the_old_and_nothing_beside(self) -> None:
        path = Path(self.top, "file")
        write_atomically(str(path), b"old", 0o640)
        self.assertEqual(path.stat().st_mode & 0o777, 0o640)

        def broken(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "fsync", broken)
        with self.assertRaises(OSError):
            write_atomically(str(path), b"new")
        self.assertEqual((path.read_bytes(), os.listdir(self.top)), (b"old", ["file"]))
