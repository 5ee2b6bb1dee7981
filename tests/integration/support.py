"""A sandbox in which the anbox command, and adb, run as a user would run them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support import REPOSITORY, adb_binaries

COMMAND_LIMIT_S = 90.0
LOOK_EVERY_S = 0.05


def eventually(look: Callable[[], Any], what: str, limit_s: float = 30.0) -> Any:
    """Look again and again until the answer is true; returns it."""
    deadline = time.monotonic() + limit_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s} s: {what}")
        time.sleep(LOOK_EVERY_S)


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Sandbox:
    """Private home, runtime and data directories and a private adb server port."""

    def __init__(self, case: SynchronousTestCase) -> None:
        # Not below trial's directory: the kernel takes socket paths of 107 bytes at most.
        self.directory = Path(tempfile.mkdtemp(prefix="atw-"))
        case.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.runtime = self.directory / "run"
        self.data = self.directory / "data"
        for directory in (self.runtime, self.data, self.directory / "home"):
            directory.mkdir(mode=0o700)
        self.adb_port = free_port()
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("XDG_", "ANBOX_", "ANDROID_", "ADB_"))
        }
        self.environment = {
            **kept,
            "HOME": str(self.directory / "home"),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_DATA_HOME": str(self.data),
            "PYTHONPATH": str(REPOSITORY),
            "ANDROID_ADB_SERVER_PORT": str(self.adb_port),
            "ADB_USB": "0",
            "ADB_MDNS": "0",
        }
        self.case = case
        self._adb_used: set[str] = set()
        self._running: list[subprocess.Popen[str]] = []
        case.addCleanup(self._end)

    def _end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stdout:
                process.stdout.close()
        for adb in self._adb_used:
            subprocess.run(
                [adb, "kill-server"], env=self.environment, capture_output=True, check=False, timeout=20
            )

    def run(
        self,
        command: list[str],
        *,
        limit_s: float = COMMAND_LIMIT_S,
        stdin: str | None = None,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            command,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
            cwd=self.directory,
            input=stdin,
        )

    def anbox(
        self, *arguments: str, limit_s: float = COMMAND_LIMIT_S, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``anbox`` to its end."""
        return self.run(self.command(*arguments), limit_s=limit_s, **environment)

    def command(self, *arguments: str) -> list[str]:
        """The command line of ``anbox``."""
        return [sys.executable, "-m", "anbox_tw.cli", *arguments]

    def up(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start ``anbox up`` in the background."""
        log = (self.directory / f"up{len(self._running)}.log").open("w")
        if "--data-path" not in arguments:
            arguments = (*arguments, "--data-path", self.data_path(*arguments))
        process = subprocess.Popen(
            self.command("up", *arguments),
            env={**self.environment, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=self.directory,
            start_new_session=True,
        )
        log.close()
        self._running.append(process)
        return process

    def data_path(self, *arguments: str) -> str:
        """A data directory of the instance's own: root's usual place is not below the home directory."""
        name = arguments[arguments.index("--instance") + 1] if "--instance" in arguments else "default"
        return str(self.data / name)

    def up_output(self, number: int = 0) -> str:
        """What the numbered ``up`` has printed."""
        return (self.directory / f"up{number}.log").read_text()

    def booted(self, *arguments: str, limit_s: float = 60) -> dict[str, Any]:
        """Wait until an instance has booted; returns its description."""
        done = self.anbox("wait", "--for", "booted", "--timeout", str(limit_s), "--json", *arguments)
        if done.returncode:
            logs = self.anbox("logs", *arguments)
            self.case.fail(f"{done.stdout}{done.stderr}\n{self.up_output()}\n{logs.stdout}")
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def adb(
        self, version: str, *arguments: str, limit_s: float = COMMAND_LIMIT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a real adb client."""
        binary = adb_binaries()[version]
        self._adb_used.add(binary)
        return self.run([binary, *arguments], limit_s=limit_s)

    def device_states(self, version: str) -> dict[str, str]:
        """``adb devices`` as a table."""
        listed = self.adb(version, "devices").stdout
        rows = [line.split("\t") for line in listed.splitlines() if "\t" in line]
        return {row[0]: row[1].strip() for row in rows}

    def leftovers(self) -> list[str]:
        """Everything that is below the runtime directory."""
        return sorted(str(path.relative_to(self.runtime)) for path in self.runtime.rglob("*"))

    def processes(self) -> list[str]:
        """Processes that were started from this sandbox and still run, with their command lines."""
        found = []
        marker = f"XDG_RUNTIME_DIR={self.runtime}\0".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if marker in (entry / "environ").read_bytes():
                    command = (
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    )
                    if command and " fork-server " not in command:
                        found.append(f"{entry.name} {command}")
            except OSError:
                continue
        return found
