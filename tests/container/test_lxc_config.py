"""The text that LXC reads, the id map in it, and what LXC's complaints mean."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.container._acl import acl_with_user, allows_user
from anbox_tw.container._lxc_config import DeviceRule, LxcConfig, MountEntry, NetworkInterface
from anbox_tw.container._lxc_diagnosis import errors_of_log, explain
from anbox_tw.container.diagnosis import CODES
from anbox_tw.container.idmap import BASE_ID, ID_COUNT, IdMap, IdRange, idmap_for
from anbox_tw.errors import ConfigError


def a_config(**changes: object) -> LxcConfig:
    given = {
        "rootfs": "/r",
        "init": ("/init",),
        "log_file": "/l/container.log",
        "console_log": "/l/console.log",
    }
    return LxcConfig(**{**given, **changes})  # type: ignore[arg-type]  # the test's own names


class IdMapTests(SynchronousTestCase):
    def test_the_table_of_a_user_has_no_hole_and_ends_with_its_range(self) -> None:
        found = idmap_for(1000, 1001)
        self.assertEqual(
            found.uids, (IdRange(0, 100000, 1000), IdRange(1000, 1000, 1), IdRange(1001, 101001, 98999))
        )
        self.assertEqual(found.gids[1], IdRange(1000, 1001, 1))
        self.assertEqual(found.host_uid(999), 100999)
        self.assertEqual(found.host_uid(1000), 1000)
        self.assertEqual(found.host_uid(99999), 199999)
        self.assertEqual(found.host_uid(100000), 65534)

    def test_the_hosts_root_is_never_given_to_a_container(self) -> None:
        found = idmap_for(0, 0)
        self.assertEqual(found.uids, (IdRange(0, 100000, 100000),))
        self.assertFalse(found.maps_uid(0))
        self.assertFalse(found.maps_gid(0))

    def test_an_owner_out_of_the_range_itself_is_not_mapped_twice(self) -> None:
        self.assertEqual(len(idmap_for(150000, 150000).uids), 1)

    def test_a_privileged_container_has_no_map(self) -> None:
        found = idmap_for(1000, 1000, privileged=True)
        self.assertFalse(found)
        self.assertEqual((found.root_uid, found.root_gid, found.host_uid(1000)), (0, 0, 1000))
        self.assertTrue(found.maps_uid(0) and found.maps_gid(0))

    @given(st.integers(0, 2**31))
    @settings(derandomize=True, deadline=None)
    def test_every_id_is_mapped_once_and_to_one_of_the_hosts(self, owner: int) -> None:
        found = idmap_for(owner, owner)
        self.assertEqual(sum(each.count for each in found.uids), ID_COUNT)
        inside = [n for r in found.uids for n in (r.container, r.container + r.count)]
        self.assertEqual(inside[1:-1:2], inside[2::2])
        outside = sorted((r.host, r.host + r.count) for r in found.uids)
        self.assertTrue(all(a[1] <= b[0] for a, b in zip(outside, outside[1:], strict=False)))
        self.assertEqual(found.host_uid(0), BASE_ID)


class ConfigTests(SynchronousTestCase):
    def test_the_original_keys_are_there(self) -> None:
        text = a_config(cgroup_layout="v1", devices=(DeviceRule("c", 1, 3),)).render()
        for line in (
            "lxc.mount.auto = proc:mixed sys:mixed cgroup:mixed",
            "lxc.autodev = 1",
            "lxc.pty.max = 1024",
            "lxc.tty.max = 0",
            "lxc.tty.dir =",
            "lxc.uts.name = anbox",
            "lxc.init.cmd = /init",
            "lxc.rootfs.path = dir:/r",
            "lxc.log.level = 0",
            "lxc.log.file = /l/container.log",
            "lxc.console.logfile = /l/console.log",
            "lxc.console.rotate = 1",
            "lxc.apparmor.profile = unconfined",
            "lxc.cgroup.devices.deny = a",
            "lxc.cgroup.devices.allow = c 1:3 rwm",
        ):
            self.assertIn(f"{line}\n", text)

    def test_control_groups_of_version_2_have_keys_of_their_own(self) -> None:
        text = a_config(cgroup_layout="v2", devices=(DeviceRule("c", 136, None),)).render()
        self.assertIn("lxc.cgroup2.devices.allow = c 136:* rwm\n", text)
        self.assertNotIn("lxc.cgroup.devices", text)

    def test_without_a_controller_nothing_is_asked_of_it(self) -> None:
        self.assertNotIn("devices", a_config(devices=(DeviceRule("c", 1, 3),)).render())

    def test_the_nice_limit_is_set_only_where_it_can_be(self) -> None:
        self.assertNotIn("prlimit", a_config().render())
        self.assertIn("lxc.prlimit.nice = 1\n", a_config(nice_limit=True).render())

    def test_a_privileged_container_loses_more_capabilities(self) -> None:
        self.assertIn("sys_module", a_config().render())
        self.assertIn("lxc.cap.drop = wake_alarm\n", a_config(idmap=idmap_for(0, 0)).render())

    def test_the_id_map_is_written_for_users_and_groups(self) -> None:
        text = a_config(idmap=IdMap((IdRange(0, 5, 6),), (IdRange(0, 7, 8),))).render()
        self.assertIn("lxc.idmap = u 0 5 6\nlxc.idmap = g 0 7 8\n", text)

    def test_the_network(self) -> None:
        link = NetworkInterface("anbox123", "anbox0", "192.168.250.2/24", "192.168.250.1")
        text = a_config(network=link).render()
        for line in (
            "lxc.net.0.type = veth",
            "lxc.net.0.flags = up",
            "lxc.net.0.link = anbox0",
            "lxc.net.0.veth.pair = anbox123",
            "lxc.net.0.ipv4.address = 192.168.250.2/24",
            "lxc.net.0.ipv4.gateway = 192.168.250.1",
        ):
            self.assertIn(f"{line}\n", text)
        self.assertIn("lxc.net.0.type = empty\n", a_config().render())
        self.assertIn("lxc.net.0.type = none\n", a_config(share_network=True).render())

    def test_where_lxc_cannot_see_the_bridge_a_command_joins_it(self) -> None:
        link = NetworkInterface("v", "anbox0", "10.0.0.2/24", None, "/bin/sh -c 'x' attach")
        text = a_config(network=link).render()
        self.assertIn("lxc.net.0.script.up = /bin/sh -c 'x' attach\n", text)
        self.assertNotIn("lxc.net.0.link", text)
        self.assertNotIn("gateway", text)

    def test_mount_entries(self) -> None:
        self.assertEqual(
            MountEntry("/a b", "dev/qemu_pipe").line(), "/a\\040b dev/qemu_pipe none bind,create=file 0 0"
        )
        entry = MountEntry("/a", "x\ty", directory=True, read_only=True, recursive=True, optional=True)
        self.assertEqual(entry.line(), "/a x\\011y none rbind,ro,create=dir,optional 0 0")
        entry = MountEntry("tmpfs", "tmp", directory=True, filesystem="tmpfs", options=("mode=1777",))
        self.assertEqual(entry.line(), "tmpfs tmp tmpfs mode=1777,create=dir 0 0")

    def test_hooks_groups_filter_and_raw_lines(self) -> None:
        text = a_config(
            start_hook="/h",
            seccomp_profile="/s",
            monitor_cgroup="m",
            payload_cgroup="p",
            environment={"A": "b c"},
            raw=(("lxc.mount.entry", "/x y none bind 0 0"),),
        ).render()
        for line in (
            "lxc.hook.start-host = /h",
            "lxc.seccomp.profile = /s",
            "lxc.cgroup.dir.monitor = m",
            "lxc.cgroup.dir.container = p",
            "lxc.environment = A=b c",
            "lxc.mount.entry = /x y none bind 0 0",
        ):
            self.assertIn(f"{line}\n", text)

    def test_a_line_break_cannot_smuggle_a_key_in(self) -> None:
        for changes in ({"environment": {"A": "b\nlxc.idmap ="}}, {"hostname": "x\ry"}, {"rootfs": "/a\0b"}):
            self.assertRaises(ConfigError, a_config(**changes).render)
        self.assertRaises(ConfigError, MountEntry("/a\nb", "c").line)

    def test_a_command_that_lxc_would_split_wrongly_is_left_to_its_arguments(self) -> None:
        self.assertIn("lxc.init.cmd = /a -b\n", a_config(init=("/a", "-b")).render())
        for init in (("/a", "b c"), ("/a", "")):
            self.assertNotIn("lxc.init.cmd", a_config(init=init).render())


LOG = """\
lxc-start default 20261121041448.139 WARN     start - ../src/lxc/start.c:lxc_check_inherited:329 - Inherited fd 10
lxc-start default 20261121041448.155 ERROR    conf - ../src/lxc/conf.c:lxc_map_ids:3708 - newuidmap failed to write
lxc-start default 20261121041448.155 ERROR    start - ../src/lxc/start.c:lxc_spawn:1788 - Failed to set up id mapping.
lxc-start default 20261121041448.156 ERROR    start - ../src/lxc/start.c:__lxc_start:2107 - Failed to spawn container
""".splitlines()


def a_log(function: str, text: str) -> list[str]:
    return [f"lxc-start x 20261121041448.155 ERROR    conf - ../src/lxc/conf.c:{function}:1 - {text}"]


class DiagnosisTests(SynchronousTestCase):
    def test_the_first_complaint_is_the_reason(self) -> None:
        found = explain(LOG, "status 1")
        self.assertEqual(found.code, "ANBOX-C021")
        self.assertIn("newuidmap failed", found.why)
        self.assertEqual(len(found.errors), 3)

    def test_known_complaints_have_their_codes(self) -> None:
        for function, text, code in (
            ("netdev_configure_server_veth", 'Failed to attach "v" to bridge "anbox0"', "ANBOX-C016"),
            ("start", 'Permission denied - Failed to exec "/work/x"', "ANBOX-C013"),
            ("cgfsng_payload_create", "Failed to create payload cgroup", "ANBOX-C019"),
            ("safe_mount", 'No such file or directory - Failed to mount "/a" onto "/b"', "ANBOX-C011"),
            ("lxc_mount_rootfs", 'Failed to mount rootfs "/a" onto "/b"', "ANBOX-C011"),
            ("setup_resource_limits", "Operation not permitted - Failed to set rlimit", "ANBOX-C006"),
            ("lxc_spawn", "Operation not permitted - Failed to clone a new set of namespaces", "ANBOX-C010"),
            ("parse_line", "Failed to parse config file", "ANBOX-C006"),
            ("elsewhere", "something new", "ANBOX-C012"),
        ):
            found = explain(a_log(function, text), "status 1")
            self.assertEqual(found.code, code, text)
            self.assertIn(found.code, CODES)
            self.assertIn(text[:20], found.why)

    def test_silence_is_told_as_the_status(self) -> None:
        found = explain(["nothing of LXC's"], "lxc-start ended with status 1")
        self.assertEqual((found.code, found.why), ("ANBOX-C012", "lxc-start ended with status 1"))

    def test_other_levels_are_no_errors(self) -> None:
        self.assertEqual(errors_of_log(LOG[:1]), [])


class AclTests(SynchronousTestCase):
    def entries(self, data: bytes) -> list[tuple[int, int, int]]:
        self.assertEqual(data[:4], struct.pack("<I", 2))
        return list(struct.iter_unpack("<HHI", data[4:]))

    def test_one_more_user_is_let_in_and_nobody_else(self) -> None:
        found = self.entries(acl_with_user(0o660, 100000, 6))
        none = 0xFFFFFFFF
        self.assertEqual(
            found, [(1, 6, none), (2, 6, 100000), (4, 6, none), (0x10, 6, none), (0x20, 0, none)]
        )

    def test_an_existing_list_is_kept(self) -> None:
        first = acl_with_user(0o600, 1, 4)
        both = self.entries(acl_with_user(0o600, 2, 2, first))
        self.assertIn((2, 4, 1), both)
        self.assertIn((2, 2, 2), both)
        self.assertIn((0x10, 6, 0xFFFFFFFF), both)
        self.assertEqual(acl_with_user(0o600, 1, 4, first), first)

    def test_a_damaged_list_is_refused(self) -> None:
        for data in (b"\2\0\0", b"\1\0\0\0", b"\2\0\0\0abc"):
            self.assertRaises(ValueError, acl_with_user, 0o600, 1, 4, data)

    def test_what_a_mode_allows(self) -> None:
        self.assertTrue(allows_user(0o600, (5, 5), (5, 9), 6))
        self.assertFalse(allows_user(0o660, (5, 5), (6, 6), 6))
        self.assertTrue(allows_user(0o660, (5, 5), (6, 5), 6))
        self.assertTrue(allows_user(0o666, (5, 5), (6, 6), 6))
        self.assertFalse(allows_user(0o606, (5, 5), (6, 5), 6))
