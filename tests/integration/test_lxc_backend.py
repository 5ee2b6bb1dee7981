"""The lxc backend from the command line: a real container, and a host that is afterwards as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support import Sandbox, eventually
from tests.support import need_root, need_tool


def say(*command: str) -> str:
    """What a tool prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout


def host_state(box: Sandbox) -> dict[str, object]:
    """All of the host that a container may change."""
    links = [(link["ifname"], link["operstate"]) for link in json.loads(say("ip", "-j", "link") or "[]")]
    mounts = sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    unix = sorted(
        line.split()[7]
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]
        if len(line.split()) > 7
    )
    return {
        "links": sorted(links),
        "nft": say("nft", "-j", "list", "ruleset"),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "mounts": mounts,
        "loops": say("losetup", "--list", "--noheadings", "--output", "BACK-FILE"),
        "containers": say("lxc-ls", "--active"),
        "sockets": [path for path in unix if "anbox" in path or str(box.directory) in path],
        "modes": {
            path: oct(os.stat(path).st_mode) for path in ("/", "/sys", "/proc", "/dev", "/run", "/tmp")
        },
        "run": sorted(str(path) for path in Path("/run").glob("anbox*")),
        "runtime": box.leftovers(),
        "processes": [line for line in box.processes() if "adb" not in line],
    }


class LxcTests(SynchronousTestCase):
    def setUp(self) -> None:
        need_root()
        for tool in ("lxc-start", "ip", "nft", "adb"):
            need_tool(tool)
        self.box = Sandbox(self)
        # nft answers with an empty ruleset of another shape before its first use in a namespace
        say("nft", "-j", "list", "ruleset")
        self.before = host_state(self.box)

    def assert_as_before(self) -> None:
        eventually(
            lambda: not [line for line in self.box.processes() if "adb" not in line], "no process left"
        )
        self.assertEqual(host_state(self.box), self.before)

    def up(self) -> None:
        self.box.up("--backend", "lxc", "--rootfs", "host")

    def test_a_container_of_its_own_that_reaches_the_host(self) -> None:
        self.up()
        told = self.box.booted()
        self.assertEqual(told["container"]["backend"], "lxc")
        for version in ("29", "36"):
            eventually(
                lambda version=version: self.box.device_states(version).get(told["serial"]) == "device",  # type: ignore[misc]
                f"adb {version} sees it",
            )
            inside = self.box.adb(
                version, "-s", told["serial"], "shell", "readlink /proc/self/ns/pid /proc/self/ns/net"
            )
            self.assertEqual(inside.returncode, 0, inside.stdout + inside.stderr)
            outside = [os.readlink("/proc/self/ns/pid"), os.readlink("/proc/self/ns/net")]
            for theirs, ours in zip(inside.stdout.split(), outside, strict=True):
                self.assertNotEqual(theirs, ours)
        (link,) = json.loads(say("ip", "-j", "-4", "addr", "show", "anbox0"))
        gateway = link["addr_info"][0]["local"]
        mac = json.loads(say("ip", "-j", "link", "show", "anbox0"))[0]["address"]
        by_netd = self.box.anbox("ndc", "interface", "getcfg", "anbox0")
        # events may come before the reply
        replies = [line for line in by_netd.stdout.splitlines() if not line.startswith("6")]
        expected = f"213 0 {mac} {gateway} 24 up broadcast running multicast"
        self.assertEqual(replies, [expected], by_netd.stderr)
        pinged = self.box.anbox("shell", "--", "ping", "-c", "1", "-W", "5", gateway)
        self.assertEqual(pinged.returncode, 0, pinged.stdout + pinged.stderr)
        down = self.box.anbox("down")
        self.assertEqual(down.returncode, 0, down.stdout + down.stderr)
        for version in ("29", "36"):
            self.box.adb(version, "kill-server")
        self.assert_as_before()

    def test_a_killed_manager_leaves_nothing_after_the_next_up_and_down(self) -> None:
        self.up()
        self.box.booted()
        # what the instance's netd has changed is undone, too
        for command in ("interface setmtu lo 1400", "ipfwd enable test", "nat enable anbox0 lo 0"):
            done = self.box.anbox("ndc", *command.split())
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        process = self.box._running[0]
        for line in self.box.processes():
            if " anbox-container " in line or " anbox-session " in line or " up " in line:
                os.kill(int(line.split()[0]), signal.SIGKILL)
        process.wait(30)
        self.box.up("--backend", "lxc", "--rootfs", "host")
        self.box.booted()
        self.assertEqual(self.box.anbox("shell", "--", "echo", "again").stdout, "again\n")
        self.assertEqual(self.box.anbox("down").returncode, 0)
        self.assert_as_before()

    def test_two_containers_side_by_side(self) -> None:
        self.up()
        self.box.up("--instance", "second", "--backend", "lxc", "--rootfs", "host")
        first, second = self.box.booted(), self.box.booted("--instance", "second")
        self.assertNotEqual(first["container"]["address"], second["container"]["address"])
        self.assertEqual(self.box.anbox("shell", "--", "echo", "1").stdout, "1\n")
        self.assertEqual(self.box.anbox("shell", "--instance", "second", "--", "echo", "2").stdout, "2\n")
        self.assertEqual(self.box.anbox("down", "--all").returncode, 0)
        self.assert_as_before()
