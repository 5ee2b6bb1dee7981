"""What the wheel holds, and that twistd finds our commands in a checkout that is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

from tests.support import REPOSITORY, need_tool


def tracked_files() -> list[str]:
    """Every file of the checkout that git tracks or would track."""
    listed = subprocess.run(
        [need_tool("git"), "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (REPOSITORY / name).exists()]


class WheelTests(SynchronousTestCase):
    def setUp(self) -> None:
        source = Path(self.mktemp())
        for name in tracked_files():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target)
        # A cache as twistd leaves it in a checkout: it would overwrite Twisted's own on install.
        (source / "twisted" / "plugins" / "dropin.cache").write_bytes(b"stale")
        out = Path(self.mktemp())
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out.absolute())],
            cwd=source,
            check=True,
            capture_output=True,
        )
        (wheel,) = out.glob("*.whl")
        self.names = zipfile.ZipFile(wheel).namelist()

    def test_only_our_package_and_the_dropin(self) -> None:
        tops = {name.split("/")[0] for name in self.names if ".dist-info/" not in name}
        self.assertEqual(tops, {"anbox_tw", "twisted"})
        self.assertEqual(
            [name for name in self.names if name.startswith("twisted/")],
            ["twisted/plugins/anbox_tw_plugins.py"],
        )

    def test_every_module_and_the_type_marker(self) -> None:
        expected = {
            name
            for name in tracked_files()
            if name.startswith("anbox_tw/") and name.endswith((".py", ".pyi", "py.typed"))
        }
        self.assertEqual(expected - set(self.names), set())
        self.assertIn("anbox_tw/py.typed", self.names)


class TwistdTests(SynchronousTestCase):
    def test_help_lists_every_command_of_the_dropin(self) -> None:
        environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
        listed = subprocess.run(
            [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            cwd=self.mktemp_directory(),
        ).stdout
        makers = [
            maker
            for maker in getPlugins(IServiceMaker)
            if getattr(maker, "module", "").startswith("anbox_tw.")
        ]
        self.assertGreaterEqual(len(makers), 2)
        for maker in makers:
            self.assertRegex(listed, rf"(?m)^\s+{maker.tapname}\s+\S")

    def test_each_command_explains_itself(self) -> None:
        for maker in getPlugins(IServiceMaker):
            if getattr(maker, "module", "").startswith("anbox_tw."):
                text = str(maker.options())
                self.assertIn("--", text)
                self.assertIn("Options:", text)

    def mktemp_directory(self) -> str:
        path: str = self.mktemp()
        os.makedirs(path)
        return path


class TreeTests(SynchronousTestCase):
    def test_no_package_where_none_may_be(self) -> None:
        for folder in ("twisted", "twisted/plugins", "protocols", "tap"):
            self.assertFalse((REPOSITORY / folder / "__init__.py").exists(), folder)

    def test_only_the_six_folders_beside_the_files_of_the_repository(self) -> None:
        tops = {name.split("/")[0] for name in tracked_files()}
        allowed = {
            "twisted",
            "anbox_tw",
            "protocols",
            "tests",
            "tap",
            "docs",
            "benchmarks",
            ".ci",
            ".gitignore",
            "README.md",
            "pyproject.toml",
            "Makefile",
            "CHANGELOG.md",
            "LICENSE",
            "CONTRIBUTING.md",
            "SECURITY.md",
        }
        self.assertEqual(tops - allowed, set())
