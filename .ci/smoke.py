"""Try an installed copy: `twistd --help` lists our commands, and each starts and ends cleanly on SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS: dict[str, list[str]] = {
    "anbox-container": [
        "--socket",
        "{dir}/container.socket",
        "--backend",
        "process",
        "--data-path",
        "{dir}/data",
    ],
    "anbox-session": ["--experimental", "--standalone"],
    "anbox-adbd": ["--listen", "tcp:0:interface=127.0.0.1"],
    "anbox-adb-server": ["--listen", "unix:{dir}/adb.socket", "--no-emulators"],
    "anbox-init": ["--rc", "{dir}/init.rc", "--socket-dir", "{dir}"],
    "anbox-installd": ["--data", "{dir}/data", "--listen", "unix:{dir}/installd:lockfile=0"],
    "anbox-netd": ["--socket-dir", "{dir}", "--dry-run"],
}
"""Each twistd command with options under which it runs without root in the directory {dir}."""

START_LIMIT_S = 30.0
STOP_LIMIT_S = 15.0


def environment(directory: Path) -> dict[str, str]:
    """A clean environment: nothing of the checkout, runtime and home in ``directory``."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "XDG_", "ANBOX"))
    }
    return {
        **kept,
        "HOME": str(directory),
        "XDG_RUNTIME_DIR": str(directory),
        "XDG_DATA_HOME": str(directory / "data"),
    }


def start_and_stop(twistd: Path, command: str, options: list[str]) -> str:
    """Run one command; returns what is wrong, or an empty string."""
    with tempfile.TemporaryDirectory(prefix="anbox-tw-smoke-") as name:
        directory = Path(name)
        directory.chmod(0o700)
        (directory / "init.rc").write_text("on boot\n    setprop sys.smoke 1\n")
        log = directory / "log"
        filled = [option.replace("{dir}", name) for option in options]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [str(twistd), "-n", "--pidfile=", command, *filled],
                cwd=name,
                env=environment(directory),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while "starting up" not in log.read_text(errors="replace") and process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                return f"{command}: not up within {START_LIMIT_S} s\n{log.read_text(errors='replace')}"
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return (
                f"{command}: still running {STOP_LIMIT_S} s after SIGTERM\n{log.read_text(errors='replace')}"
            )
        text = log.read_text(errors="replace")
        # twistd itself ends by the signal that ended its reactor
        if code not in (0, -signal.SIGTERM) or "Traceback" in text or "Unhandled" in text:
            return f"{command}: exit {code}\n{text}"
        return ""


def main() -> int:
    """Exit code: 0 when all commands are there and behave."""
    binaries = Path(sys.argv[1])
    wrong = []
    help_text = subprocess.run(
        [binaries / "twistd", "--help"], capture_output=True, text=True, check=True
    ).stdout
    anbox = subprocess.run([binaries / "anbox", "version"], capture_output=True, text=True, check=False)
    if anbox.returncode:
        wrong.append(f"anbox version: exit {anbox.returncode}\n{anbox.stdout}{anbox.stderr}")
    unknown = set(re.findall(r"^    (anbox-[a-z-]+) ", help_text, re.M)) - set(COMMANDS)
    wrong += [f"{command} is listed by twistd --help, but not tried here" for command in sorted(unknown)]
    for command, options in COMMANDS.items():
        if f" {command} " not in help_text:
            wrong.append(f"twistd --help does not list {command}")
            continue
        problem = start_and_stop(binaries / "twistd", command, options)
        if problem:
            wrong.append(problem)
        else:
            print(f"ok   twistd {command}: starts, ends on SIGTERM")
    for line in wrong:
        print(f"FAIL {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
