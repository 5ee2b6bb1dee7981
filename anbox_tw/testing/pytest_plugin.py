"""pytest fixtures; ask for them with ``pytest_plugins = ["anbox_tw.testing.pytest_plugin"]``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

__all__ = ["RunningDevice", "adb_device"]

START_TIMEOUT_S = 30


@attrs.frozen
class RunningDevice:
    """A fake device in a process of its own.

    Attributes:
        port: its TCP port on loopback.
        root: the directory with its files.
    """

    port: int
    root: str

    @property
    def serial(self) -> str:
        """What ``adb connect`` takes and then calls it."""
        return f"localhost:{self.port}"


@pytest.fixture
def adb_device() -> Iterator[Callable[..., RunningDevice]]:
    """Start fake devices: ``adb_device(shell={"id": "uid=0"}, properties={...}, files={...}, strict=True)``.

    They are real adbds, for any ADB client, blocking or not; they end with the test.
    """
    running: list[subprocess.Popen[str]] = []

    def start(**settings: Any) -> RunningDevice:
        process = subprocess.Popen(
            [sys.executable, "-m", "anbox_tw.testing.adb_device", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the device did not start: exit status {process.wait(START_TIMEOUT_S)}")
        told = json.loads(line)
        return RunningDevice(told["port"], told["root"])

    yield start
    for process in running:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
