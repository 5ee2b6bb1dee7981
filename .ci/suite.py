"""Run the trial suite in parallel shards, each in a network namespace of its own where that is possible.

A shard is a set of test packages. As root each shard gets private network and mount namespaces with a /run of
its own, so the ports, bridges, nft rules, mounts and sockets of one cannot meet those of another, nor the
machine's. The coverage of all shards is added up and held against the floor.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOOR = 91.5
"""Branch coverage in percent that the suite may not fall under; raised as the suite grows, never lowered."""

TIME_LIMIT_S = 1500
"""A shard that takes longer is ended and counts as failed."""

NAMESPACE = [
    "unshare",
    "--net",
    "--mount",
    "--propagation",
    "private",
    "sh",
    "-c",
    'mount -t tmpfs -o mode=755 tmpfs /run && ip link set lo up && exec "$@"',
    "sh",
]

HEAVY = ["tests.adb", "tests.netd", "tests.container", "tests.android", "tests.session", "tests.integration"]
"""Packages worth a shard of their own, longest first; the rest runs as one more."""


def modules() -> list[list[str]]:
    """The shards: lists of what trial is to load."""
    tests = ROOT / "tests"
    heavy = [name for name in HEAVY if (ROOT / name.replace(".", "/")).is_dir()]
    rest = [
        f"tests.{path.stem}"
        for path in sorted(tests.iterdir())
        if (path.is_dir() and (path / "__init__.py").exists())
        or (path.suffix == ".py" and path.stem.startswith("test_"))
    ]
    return [*([name] for name in heavy), [name for name in rest if name not in heavy]]


def isolation() -> list[str]:
    """The command prefix that gives a shard namespaces of its own, or nothing without root."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        return []
    probe = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
    return NAMESPACE if probe.returncode == 0 else []


def main() -> int:
    """Exit code: 0 when every shard passed and coverage holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "only", nargs="*", help="test packages to run instead of all (no coverage floor then)"
    )
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    waiting = [[name] for name in options.only] or modules()
    prefix = isolation()
    require_all = os.environ.get("ANBOX_TW_REQUIRE_ALL") == "1"
    if require_all and not prefix:
        print("anbox-tw: ANBOX_TW_REQUIRE_ALL=1 needs root and network namespaces", file=sys.stderr)
        return 1
    # Short names: tests bind UNIX sockets below it, and the kernel takes paths of 107 bytes.
    work = Path(tempfile.mkdtemp(prefix="ats-"))
    environment = dict(
        os.environ, COVERAGE_FILE=str(work / "coverage"), COVERAGE_PROCESS_START=str(ROOT / "pyproject.toml")
    )
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}:/usr/sbin:/sbin"
    environment["PYTHONPATH"] = str(ROOT)
    running: list[tuple[list[str], subprocess.Popen[bytes], Path, float]] = []
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    bad: list[str] = []
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                shard = waiting.pop(0)
                log = work / f"{shard[0]}.log"
                command = [
                    *prefix,
                    sys.executable,
                    "-m",
                    "coverage",
                    "run",
                    "--rcfile",
                    str(ROOT / "pyproject.toml"),
                    "-m",
                    "twisted.trial",
                    "--temp-directory",
                    str(work / f"t{len(waiting)}"),
                    *shard,
                ]
                with log.open("wb") as out:
                    process = subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=environment,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                running.append((shard, process, log, time.monotonic()))
            for entry in list(running):
                shard, process, log, began = entry
                took = time.monotonic() - began
                if process.poll() is None and took < TIME_LIMIT_S:
                    continue
                running.remove(entry)
                if process.poll() is None:
                    os.killpg(process.pid, 9)
                    process.wait()
                text = log.read_text(errors="replace")
                ran = re.search(r"^Ran (\d+) tests", text, re.M)
                tail = text.splitlines()[-1] if text.strip() else ""
                count = {
                    key: int(number)
                    for key, number in re.findall(r"(failures|errors|skips|successes)=(\d+)", tail)
                }
                failed = count.get("failures", 0) + count.get("errors", 0)
                good = process.returncode == 0 and ran is not None and int(ran[1]) > 0
                totals["passed"] += count.get("successes", 0)
                totals["skipped"] += count.get("skips", 0)
                totals["failed"] += failed if good or failed else 1
                if not good or (require_all and count.get("skips")):
                    bad.append(shard[0])
                    print(text)
                print(
                    f"{'ok  ' if shard[0] not in bad else 'FAIL'} {' '.join(shard)}: {tail} in {took:.0f} s",
                    flush=True,
                )
            time.sleep(0.2)
    finally:
        for _, process, _, _ in running:
            os.killpg(process.pid, 9)
    covered = True
    if not bad and not options.only:
        coverage = [sys.executable, "-m", "coverage"]
        subprocess.run([*coverage, "combine", "--quiet"], cwd=ROOT, env=environment, check=True)
        floor = ["--fail-under", str(FLOOR)] if prefix else []
        covered = (
            subprocess.run([*coverage, "report", *floor], cwd=ROOT, env=environment, check=False).returncode
            == 0
        )
    shutil.rmtree(work, ignore_errors=True)
    if not prefix:
        print("anbox-tw: without root the coverage floor is not checked")
    print(f"{totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped")
    return 0 if not bad and covered else 1


if __name__ == "__main__":
    sys.exit(main())
