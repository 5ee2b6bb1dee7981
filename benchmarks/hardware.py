"""``python -m benchmarks.hardware``: how punctual the guest's hardware is, at the guest's end of a session's ``qemu_pipe``.

A route is played and each position's arrival compared with its due time; a camera gives 640x480 frames while a sensor reports every 20 ms.
A session of its own runs as a program, without a container.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater, react

from anbox_tw.guest import hal
from anbox_tw.network import RuntimePaths
from anbox_tw.session.client import connect

_TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"


class Session:
    """A session program in a directory of its own."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="bench-")
        self.paths = RuntimePaths(self._directory.name)
        environment = {**os.environ, "XDG_RUNTIME_DIR": self._directory.name, "ANDROID_ADB_SERVER_PORT": "1"}
        command = [sys.executable, "-c", _TWISTD, "-n", "--pidfile=", "anbox-session"]
        self._process = subprocess.Popen(
            [*command, "--standalone", "--experimental", "--data-path", f"{self._directory.name}/data"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not os.path.exists(self.paths.qemu_pipe):
            if self._process.poll() is not None:
                raise SystemExit("the session did not start")
            time.sleep(0.05)

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        self._directory.cleanup()


def spread(numbers: list[float]) -> dict[str, float]:
    """Median, 99th percentile and most, rounded."""
    numbers = sorted(numbers)
    return {
        "median": round(numbers[len(numbers) // 2], 2),
        "p99": round(numbers[int(len(numbers) * 0.99)], 2),
        "most": round(numbers[-1], 2),
    }


def measure_route(session: Session, seconds: int, rate: float) -> dict[str, Any]:
    """Play a route; milliseconds between each position's due time and its arrival, the earliest being on time."""
    wanted = int(seconds * rate) + 1
    arrived: list[float] = []
    pipe = hal.QemuPipe(session.paths.qemu_pipe, "qemud:gps")

    def read() -> None:
        rest = b""
        while len(arrived) < wanted:
            data = pipe.read(65536)
            now = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            arrived.extend(now for line in lines if line.startswith(b"$GPGGA"))

    reader = threading.Thread(target=read)
    reader.start()

    async def play(reactor: Any) -> None:
        client = await connect(reactor, session.paths)
        route = "time,latitude,longitude\n0,50,10\n" + f"{seconds},50.05,10.05\n"
        await client.device("geo.route", text=route, rate=rate)
        while (await client.device("geo.status"))["route"]["state"] == "playing":
            await deferLater(reactor, 0.5)
        await client.close()

    try:
        react(lambda reactor: ensureDeferred(play(reactor)))
    except SystemExit as ended:
        if ended.code:
            raise
    reader.join()
    pipe.close()
    early = min(at - number / rate for number, at in enumerate(arrived))
    late = [(at - number / rate - early) * 1000 for number, at in enumerate(arrived)]
    return {"positions": wanted, "took_s": round(arrived[-1] - arrived[0], 3), "late_ms": spread(late)}


def measure_camera(session: Session, seconds: int, fps: float) -> dict[str, Any]:
    """Take frames of 640x480 as video and preview; their latency, the session's load, and a sensor's gaps meanwhile."""
    sensors = hal.SensorsDevice(session.paths.qemu_pipe)
    sensors.set_delay(20)
    sensors.activate("acceleration")
    gaps: list[float] = []
    stop = threading.Event()

    def read() -> None:
        last = 0.0
        while not stop.is_set():
            sensors.poll()
            now = time.monotonic()
            if last:
                gaps.append((now - last) * 1000)
            last = now

    reader = threading.Thread(target=read)
    reader.start()
    camera = hal.CameraDevice(session.paths.qemu_pipe, "anbox-back")
    camera.start(640, 480)
    used, began, latency = session.cpu(), time.monotonic(), []
    for number in range(int(seconds * fps)):
        time.sleep(max(0.0, began + number / fps - time.monotonic()))
        asked = time.monotonic()
        camera.frame()
        latency.append((time.monotonic() - asked) * 1000)
    took = time.monotonic() - began
    load = (session.cpu() - used) / took
    stop.set()
    reader.join()
    camera.stop()
    camera.close()
    sensors.close()
    return {
        "frames_per_s": round(len(latency) / took, 2),
        "latency_ms": spread(latency),
        "cpu_percent": round(100 * load, 1),
        "sensor_gap_ms": spread(gaps),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hardware", description=__doc__)
    parser.add_argument("--seconds", type=int, default=180, help="length of the route [%(default)s]")
    parser.add_argument("--rate", type=float, default=10.0, help="positions a second [%(default)s]")
    parser.add_argument("--fps", type=float, default=15.0, help="frames a second [%(default)s]")
    options = parser.parse_args()
    session = Session()
    try:
        results = {
            "load_before": os.getloadavg()[0],
            "camera": measure_camera(session, max(1, options.seconds // 10), options.fps),
            "route": measure_route(session, options.seconds, options.rate),
        }
    finally:
        session.close()
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
