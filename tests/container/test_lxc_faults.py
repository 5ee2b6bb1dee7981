"""kill -9 of the manager at each phase of a container's life: its successor leaves the host as it was."""

from __future__ import annotations

import glob
import json
import os
import random
import subprocess
import sys

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from anbox_tw.container.commands import Commands
from anbox_tw.container.journal import Journal, UndoContext
from anbox_tw.container.lxc import container_key
from anbox_tw.container.lxc_undo import add_lxc_kinds
from anbox_tw.container.spec import ContainerSpec
from anbox_tw.container.undo import default_kinds
from tests.container.lxc_support import LxcCase, default_reactor, look_at, soon
from tests.support import REPOSITORY

SOAK = os.environ.get("ANBOX_TW_SOAK") == "1"
"""Kill at every single step, and at many random moments; takes a minute."""


class VictimCase(LxcCase):
    timeout = 300

    def victim(
        self, spec: ContainerSpec, when: str, value: object, *wrapper: str
    ) -> Deferred[subprocess.CompletedProcess[str]]:
        given = {
            "data_path": spec.data_path,
            "run_path": spec.run_path,
            "rootfs": spec.rootfs,
            "image": spec.image,
            "bind_mounts": [(mount.source, mount.target) for mount in spec.bind_mounts],
            "init": spec.init,
            "owner_uid": 0,
            "owner_gid": 0,
        }
        argv = [
            *wrapper,
            *(sys.executable, "-m", "tests.container.lxc_victim", json.dumps(given)),
            *(self.network.run_directory, self.bridge, when, str(value)),
        ]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return deferToThread(
            lambda: subprocess.run(
                argv, check=False, capture_output=True, text=True, env=environment, timeout=60
            )
        )

    async def killed(self, spec: ContainerSpec, when: str, value: object) -> None:
        result = await self.victim(spec, when, value)
        if when != "after":
            self.assertEqual(result.returncode, -9, result.stderr)

    async def undo(self, spec: ContainerSpec) -> None:
        """What a new manager does with the old one's journal."""
        context = UndoContext(default_reactor, Commands(default_reactor))
        journal = Journal(spec.journal_path, context, add_lxc_kinds(default_kinds()))
        journal.open()
        try:
            await journal.undo_all()
        finally:
            journal.close()


class OtherHostTests(VictimCase):
    async def test_control_groups_of_version_2_and_a_bridge_that_lxc_can_see(self) -> None:
        """As on a stock Debian 12 or Ubuntu 24.04: only cgroup2, and /sys of our own network namespace."""
        spec = self.spec(None, init=("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"))
        host = (
            "umount -R /sys/fs/cgroup && mount -t sysfs sysfs /sys && mount -t cgroup2 cgroup2 /sys/fs/cgroup"
            ' && ip link set lo up && exec "$@"'
        )
        namespaces = ("unshare", "-n", "-m", "--propagation", "private", "sh", "-c", host, "sh")
        result = await self.victim(spec, "never", 0, *namespaces)
        self.assertEqual(result.returncode, 0, result.stderr)
        found = json.loads(result.stdout)
        self.assertIn("lxc.cgroup2.devices.allow = c 1:3 rwm\n", found["config"])
        self.assertIn(f"lxc.net.0.link = {self.bridge}\n", found["config"])
        self.assertTrue(found["info"]["pid"])
        self.assertFalse(glob.glob(f"/sys/fs/cgroup/unified/anbox.*.{container_key(spec)}"))


class KilledManagerTests(VictimCase):
    async def prepared(self) -> ContainerSpec:
        tree = self.static_init("anbox-init.sh")
        socket, _ = await self.session()
        spec = self.spec(socket, rootfs="", image=self.squashfs(tree), init=())
        os.makedirs(spec.run_path)
        return spec

    async def test_at_each_change_and_state(self) -> None:
        spec = await self.prepared()
        before = look_at([spec], self.bridge)
        count = json.loads((await self.victim(spec, "never", 0)).stdout)["records"]
        self.assertGreater(count, 12)
        self.assertEqual(look_at([spec], self.bridge), before)
        moments: list[tuple[str, object]] = [("state", name) for name in ("preparing", "starting", "running")]
        steps = (
            range(1, count + 1) if SOAK else sorted({1, count // 4, count // 2, count - 2, count - 1, count})
        )
        moments += [("record", number) for number in steps]
        moments += [("state", "stopping")]
        for when, value in moments:
            await self.killed(spec, when, value)
            await self.undo(spec)
            self.assertEqual(look_at([spec], self.bridge), before, (when, value))

    async def test_at_any_moment(self) -> None:
        spec = await self.prepared()
        before = look_at([spec], self.bridge)
        chance = random.Random(4711)
        for _ in range(40 if SOAK else 3):
            moment = chance.uniform(0.0, 0.4)
            await self.killed(spec, "after", moment)
            await self.undo(spec)
            self.assertEqual(look_at([spec], self.bridge), before, moment)

    async def test_a_new_start_takes_the_place_of_the_killed_one(self) -> None:
        socket, pipe = await self.session()
        spec = self.spec(socket)
        os.makedirs(spec.run_path)
        before = look_at([spec], self.bridge)
        await self.killed(spec, "state", "running")
        pipe.lines.clear()
        pipe.buffer = b""
        machine = self.machine(spec)
        await machine.start()
        self.assertEqual(json.loads(await pipe.line())["pid"], 1)
        self.assertEqual(machine.info()["address"], "192.168.250.2")
        await machine.stop()
        self.assertEqual(look_at([spec], self.bridge), before)

    async def test_the_container_of_a_killed_manager_is_gone_at_once(self) -> None:
        socket, pipe = await self.session()
        spec = self.spec(socket)
        await self.killed(spec, "state", "running")
        try:
            # The kernel ends it with its manager, before anybody undoes the rest.
            self.assertTrue(await soon(lambda: not look_at([spec], self.bridge)["default"]["unix"]))
            self.assertEqual(look_at([spec], self.bridge)["default"]["listed"], ["default"])
        finally:
            await self.undo(spec)

    async def test_a_killed_lxc_start_leaves_nothing(self) -> None:
        socket, pipe = await self.session()
        spec = self.spec(socket)
        os.makedirs(spec.run_path)
        before = look_at([spec], self.bridge)
        machine = self.machine(spec)
        await machine.start()
        await pipe.line()
        process = self.container(machine)._process
        assert process is not None
        exited = self.container(machine).when_exited()
        process.kill()
        self.assertIn("signal 9", await exited)
        await machine.stop()
        self.assertEqual(look_at([spec], self.bridge), before)

    async def test_another_instance_is_not_disturbed(self) -> None:
        specs = []
        for name in ("one", "two"):
            socket, pipe = await self.session(name)
            specs.append((self.spec(socket, instance=name), pipe))
        (one, pipe), (two, _) = specs
        machine = self.machine(one)
        await machine.start()
        await pipe.line()
        await self.killed(two, "state", "running")
        await self.undo(two)
        self.assertEqual(machine.state.value, "running")
        self.assertIn(
            self.bridge, look_at([], self.bridge)["links"][0] + str(look_at([], self.bridge)["links"])
        )
        self.assertEqual(look_at([one], self.bridge)["one"]["listed"], ["one"])
        await machine.stop()
