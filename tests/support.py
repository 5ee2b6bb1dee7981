"""What several test modules need: how a test says that it needs a real part of the machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from twisted.trial.unittest import SkipTest

REQUIRE_ALL = os.environ.get("ANBOX_TW_REQUIRE_ALL") == "1"
"""Set in CI: what is missing then fails the test instead of leaving it out."""

REPOSITORY = Path(__file__).resolve().parent.parent


def missing(what: str) -> None:
    """Leave the running test out because of ``what``; fail it where nothing may be left out."""
    if REQUIRE_ALL:
        raise AssertionError(f"required here, but missing: {what}")
    raise SkipTest(f"needs {what}")


def need_root() -> None:
    """The test needs uid 0."""
    if os.geteuid() != 0:
        missing("root")


def need_tool(name: str) -> str:
    """The test runs the system tool ``name``; returns its path."""
    path = shutil.which(name)
    if path is None:
        missing(f"the tool {name}")
        raise AssertionError("unreachable")
    return path


def adb_binaries() -> dict[str, str]:
    """The real adb clients here: ``{"29": path, "36": path}``; both are needed."""
    found = {"29": need_tool("adb")}
    spec = importlib.util.find_spec("adbutils")
    if spec is None or spec.origin is None:
        missing("adbutils, whose wheel carries adb 36")
        raise AssertionError("unreachable")
    found["36"] = str(Path(spec.origin).parent / "binaries" / "adb")
    return found
