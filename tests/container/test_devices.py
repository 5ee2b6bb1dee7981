"""Device nodes of a container's own."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.container import devices
from anbox_tw.container.devices import BINDERFS_DEVICE, allocate_binder, check_number, device_rules, make_node
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.idmap import idmap_for
from tests.container.doubles import a_journal
from tests.support import need_root


class DeviceCase(SynchronousTestCase):
    def setUp(self) -> None:
        need_root()
        self.directory = os.path.abspath(self.mktemp())
        os.makedirs(f"{self.directory}/dev/net")
        os.mkdir(f"{self.directory}/area")
        self.journal = a_journal(Clock(), f"{self.directory}/journal")
        self.addCleanup(self.journal.close)

    def make(self, path: str, **more: Any) -> Any:
        return make_node(
            path,
            path[1:],
            0o640,
            f"{self.directory}/area",
            idmap_for(1000, 1000),
            self.journal,
            dev=f"{self.directory}/dev",
            **more,
        )

    def host_node(self, name: str, major: int, minor: int, kind: int = stat.S_IFCHR) -> None:
        os.mknod(f"{self.directory}/dev/{name}", kind | 0o600, os.makedev(major, minor))


class NodeTests(DeviceCase):
    def test_a_node_has_the_containers_owner_and_the_wanted_mode(self) -> None:
        self.host_node("net/tun", 10, 200)
        node = self.make("/dev/net/tun")
        status = os.stat(node.source)
        self.assertEqual((status.st_uid, status.st_gid), (100000, 100000))
        self.assertEqual(stat.S_IMODE(status.st_mode), 0o640)
        self.assertEqual(str(node.rule), "c 10:200 rwm")
        self.assertEqual([entry.kind for entry in self.journal.pending], ["node"])

    def test_minor_numbers_above_255_are_kept(self) -> None:
        self.host_node("binder", 511, 0x12345)
        node = self.make("/dev/binder")
        status = os.stat(node.source)
        self.assertEqual((os.major(status.st_rdev), os.minor(status.st_rdev)), (511, 0x12345))

    def test_what_the_host_has_not_is_none(self) -> None:
        self.assertIsNone(self.make("/dev/ashmem"))
        self.assertEqual(self.journal.pending, [])

    def test_disks_and_memory_are_refused_whoever_asks(self) -> None:
        self.host_node("disk", 8, 0, stat.S_IFBLK)
        for name, minor in (("mem", 1), ("kmem", 2), ("port", 4), ("kmsg", 11)):
            self.host_node(name, 1, minor)
        with open(f"{self.directory}/dev/file", "w"):
            pass
        for name in ("disk", "mem", "kmem", "port", "kmsg", "file"):
            error = self.assertRaises(DiagnosedError, self.make, f"/dev/{name}")
            self.assertEqual(error.code, "ANBOX-C009")
        check_number("/dev/null", stat.S_IFCHR, os.makedev(1, 3))

    def test_without_the_right_to_make_nodes_the_hosts_own_is_used(self) -> None:
        self.host_node("fuse", 10, 229)

        def refuse(*args: Any) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        node = self.make("/dev/fuse", mknod=refuse)
        self.assertEqual(node.source, f"{self.directory}/dev/fuse")
        self.assertIn("the host's own node", node.note)
        self.assertEqual(self.journal.pending, [])

    def test_the_rules_have_the_standard_devices_once(self) -> None:
        self.host_node("null", 1, 3)
        self.host_node("fuse", 10, 229)
        rules = [str(rule) for rule in device_rules([self.make("/dev/null"), self.make("/dev/fuse")])]
        self.assertEqual(rules.count("c 1:3 rwm"), 1)
        self.assertIn("c 10:229 rwm", rules)
        self.assertIn("c 136:* rwm", rules)
        self.assertNotIn("c 1:1 rwm", rules)


class BinderTests(DeviceCase):
    def setUp(self) -> None:
        super().setUp()
        self.control = f"{self.directory}/dev/binder-control"
        self.taken: set[str] = set()
        self.errors: list[OSError] = []

    def ioctl(self, descriptor: int, request: int, data: bytearray) -> int:
        self.assertEqual(request, 0xC1086201)
        if self.errors:
            raise self.errors.pop(0)
        name = bytes(BINDERFS_DEVICE.unpack(data)[0]).rstrip(b"\0").decode()
        self.host_node(name, 511, 300)
        data[:] = BINDERFS_DEVICE.pack(name.encode(), 511, 300)
        return 0

    def allocate(self) -> Any:
        return allocate_binder(self.control, self.journal, idmap=idmap_for(0, 0), ioctl=self.ioctl)

    def test_without_binderfs_there_is_none(self) -> None:
        self.assertIsNone(self.allocate())

    def test_each_container_has_a_node_of_its_own(self) -> None:
        open(self.control, "w").close()
        first, second = self.allocate(), self.allocate()
        self.assertEqual([os.path.basename(each.path) for each in (first, second)], ["binder0", "binder1"])
        self.assertEqual(os.minor(first.number), 300)
        self.assertEqual(os.stat(first.path).st_uid, 100000)
        self.assertEqual(stat.S_IMODE(os.stat(first.path).st_mode), 0o666)
        self.assertEqual([entry.args["path"] for entry in self.journal.pending], [first.path, second.path])

    def test_a_node_that_another_manager_takes_meanwhile_is_not_ours(self) -> None:
        open(self.control, "w").close()
        self.errors = [FileExistsError(errno.EEXIST, "exists")]
        found = self.allocate()
        self.assertEqual(os.path.basename(found.path), "binder1")
        self.assertEqual([entry.args["path"] for entry in self.journal.pending], [found.path])

    def test_refusals_are_told(self) -> None:
        open(self.control, "w").close()
        self.errors = [OSError(errno.ENOSPC, "no space")]
        self.assertEqual(self.assertRaises(DiagnosedError, self.allocate).code, "ANBOX-C009")
        self.patch(devices, "MAX_BINDER_NODES", 0)
        self.assertIn("full", self.assertRaises(DiagnosedError, self.allocate).cause)
        os.unlink(self.control)
        os.symlink(self.control, self.control)
        self.assertEqual(self.assertRaises(DiagnosedError, self.allocate).code, "ANBOX-C009")
