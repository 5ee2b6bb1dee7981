"""What a container is to be: sound values, and bad ones refused with their cause and cure."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.container import spec as spec_module
from anbox_tw.container.spec import BindMount, ContainerSpec, Device, NetworkSpec
from anbox_tw.errors import ConfigError, ExitCode


def a_spec(**more: Any) -> ContainerSpec:
    return ContainerSpec(**{"data_path": "/var/lib/anbox", "run_path": "/run/anbox", **more})


class SpecTests(SynchronousTestCase):
    def test_the_paths_of_an_instance(self) -> None:
        spec = a_spec(data_path="/var//lib/anbox/")
        self.assertEqual(spec.data_path, "/var/lib/anbox")
        self.assertEqual(
            (
                spec.data_dir,
                spec.cache_dir,
                spec.logs_dir,
                spec.engine_log,
                spec.console_log,
                spec.journal_path,
            ),
            tuple(
                f"/var/lib/anbox/{name}"
                for name in (
                    "data",
                    "cache",
                    "logs",
                    "logs/container.log",
                    "logs/console.log",
                    "state/undo.journal",
                )
            ),
        )

    def test_equal_specs_are_equal_and_have_one_hash(self) -> None:
        one = a_spec(environment={"A": "1", "B": "2"}, bind_mounts=[BindMount("/a", "/b")])
        two = a_spec(environment={"B": "2", "A": "1"}, bind_mounts=(BindMount("/a", "b"),))
        self.assertEqual(one, two)
        self.assertEqual(hash(one), hash(two))
        self.assertNotEqual(one, a_spec(environment={"A": "2"}))

    def test_a_spec_cannot_be_changed(self) -> None:
        environment = {"A": "1"}
        spec = a_spec(environment=environment)
        environment["A"] = "2"
        self.assertEqual(spec.environment["A"], "1")
        with self.assertRaises(TypeError):
            spec.environment["A"] = "3"  # type: ignore[index]  # that it cannot be is the test
        with self.assertRaises(AttributeError):
            spec.instance = "x"  # type: ignore[misc]  # that it cannot be is the test

    def test_networks(self) -> None:
        network = NetworkSpec(address="192.168.250.2", gateway="192.168.250.1", dns=["8.8.8.8", ""])
        self.assertEqual(network, NetworkSpec("auto", "192.168.250.2/24", "192.168.250.1", ("8.8.8.8",)))
        self.assertEqual(NetworkSpec(address="10.0.0.7/8").address, "10.0.0.7/8")
        self.assertIsNone(NetworkSpec(address="", gateway="").gateway)

    def assert_bad(self, make: Any, *args: Any, **kw: Any) -> None:
        error = self.assertRaises(ConfigError, make, *args, **kw)
        self.assertTrue(error.cause and error.cure, error)
        self.assertEqual(error.exit_code, ExitCode.USAGE)

    def test_bad_values_are_refused_with_a_cure(self) -> None:
        mount = BindMount("/a", "b")
        for wrong in (
            {"data_path": "relative"},
            {"data_path": "/a/../b"},
            {"run_path": "/a\nb"},
            {"run_path": "/" + "x" * 5000},
            {"instance": "../x"},
            {"instance": ""},
            {"rootfs": "host/x"},
            {"rootfs": "", "image": None},
            {"image": "android.img"},
            {"owner_uid": -1},
            {"owner_uid": True},
            {"owner_gid": 2**32},
            {"owner_gid": "0"},
            {"bind_mounts": [mount, BindMount("/c", "/b")]},
            {"bind_mounts": [BindMount("/a", f"t{n}") for n in range(spec_module.MAX_BIND_MOUNTS + 1)]},
            {"devices": [Device("/dev/null")] * (spec_module.MAX_DEVICES + 1)},
            {"extra_properties": ["a=b"] * (spec_module.MAX_PROPERTIES + 1)},
            {"extra_properties": ["no equals sign"]},
            {"extra_properties": ["a=b\nro.secure=0"]},
            {"extra_properties": ["=b"]},
            {"extra_properties": ["a b=c"]},
            {"extra_properties": ["a=" + "x" * spec_module.MAX_PROPERTY_BYTES]},
            {"init": [""]},
            {"init": ["/bin/sh", "a\0b"]},
            {"init": ["x"] * (spec_module.MAX_INIT_ARGUMENTS + 1)},
            {"environment": {"": "x"}},
            {"environment": {"a=b": "x"}},
            {"environment": {"a": "x\0"}},
            {"environment": {"a": "x" * spec_module.MAX_ENVIRONMENT_BYTES}},
            {"environment": {f"v{n}": "" for n in range(spec_module.MAX_ENVIRONMENT + 1)}},
        ):
            self.assert_bad(a_spec, **wrong)
        for source, target in (
            ("a", "b"),
            ("/a", ""),
            ("/a", "/"),
            ("/a", "."),
            ("/a", "b/../c"),
            ("/a", "b\0"),
        ):
            self.assert_bad(BindMount, source, target)
        for path, permission in (
            ("/etc/passwd", 0o666),
            ("/dev/../etc", 0),
            ("/dev/x", 0o1777),
            ("/dev/x", True),
        ):
            self.assert_bad(Device, path, permission)
        for network in (
            {"mode": "some"},
            {"address": "300.1.1.1/24"},
            {"address": "fe80::1/64"},
            {"gateway": "here"},
            {"dns": ["8.8.8.8", "8.8.4.4/24"]},
        ):
            self.assert_bad(NetworkSpec, **network)

    @settings(derandomize=True, deadline=None)
    @given(st.text(max_size=60))
    def test_a_target_never_leaves_the_container(self, text: str) -> None:
        try:
            target = BindMount("/x", text).target
        except (ConfigError, UnicodeEncodeError):
            return
        self.assertFalse(target.startswith("/"))
        self.assertNotIn("..", target.split("/"))
        self.assertNotIn("", target.split("/"))
