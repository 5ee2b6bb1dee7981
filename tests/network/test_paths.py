"""Where sockets and data are."""

from __future__ import annotations

import os
import stat
from unittest import mock

from anbox_tw.errors import ConfigError, PermissionRefused
from anbox_tw.network import RuntimePaths, check_instance_name, find_runtime_dir
from anbox_tw.network.paths import private_directory
from tests.network.helpers import NetworkTestCase


class PathsTests(NetworkTestCase):
    def test_default_instance(self) -> None:
        paths = RuntimePaths("/run/user/1000")
        self.assertEqual(paths.qemu_pipe, "/run/user/1000/anbox/sockets/qemu_pipe")
        self.assertEqual(paths.anbox_bridge, "/run/user/1000/anbox/sockets/anbox_bridge")
        self.assertEqual(paths.anbox_audio, "/run/user/1000/anbox/sockets/anbox_audio")
        self.assertEqual(paths.control, "/run/user/1000/anbox/sockets/control")
        self.assertEqual(paths.input, "/run/user/1000/anbox/input")

    def test_named_instance(self) -> None:
        paths = RuntimePaths("/run/user/1000", "two")
        self.assertEqual(paths.control, "/run/user/1000/anbox/instances/two/sockets/control")
        self.assertEqual(paths.input, "/run/user/1000/anbox/instances/two/input")

    def test_manager_socket(self) -> None:
        paths = RuntimePaths("/r", "two")
        self.assertEqual(paths.manager_socket(privileged=True), "/run/anbox-container.socket")
        self.assertEqual(paths.manager_socket(privileged=False), "/r/anbox/anbox-container.socket")
        with mock.patch("os.geteuid", return_value=0):
            self.assertEqual(paths.manager_socket(), "/run/anbox-container.socket")

    def test_data_path(self) -> None:
        default, two = RuntimePaths("/r"), RuntimePaths("/r", "two")
        self.assertEqual(default.data_path(privileged=True), "/var/lib/anbox")
        self.assertEqual(two.data_path(privileged=True), "/var/lib/anbox/instances/two")
        home = {"HOME": "/home/me"}
        self.assertEqual(default.data_path(privileged=False, environ=home), "/home/me/.local/share/anbox")
        xdg = {**home, "XDG_DATA_HOME": "/data"}
        self.assertEqual(two.data_path(privileged=False, environ=xdg), "/data/anbox/instances/two")
        with (
            mock.patch("os.geteuid", return_value=1000),
            mock.patch.dict(os.environ, {"XDG_DATA_HOME": "/data"}),
        ):
            self.assertEqual(default.data_path(), "/data/anbox")

    def test_names(self) -> None:
        for name in ("a", "default", "A-b_9", "x" * 32):
            self.assertEqual(check_instance_name(name), name)
        for name in ("", "-a", ".", "..", "a/b", "a b", "x" * 33, "ä", "a\n", "a\0"):
            self.assertRaises(ConfigError, check_instance_name, name)
            self.assertRaises(ConfigError, RuntimePaths, "/r", name)

    def test_relative_runtime(self) -> None:
        self.assertRaises(ConfigError, RuntimePaths, "run")

    def test_too_long_for_a_socket(self) -> None:
        error = self.assertRaises(ConfigError, RuntimePaths("/" + "x" * 80, "y" * 20).check_lengths)
        self.assertIn("107", error.cause)
        RuntimePaths("/run/user/1000", "y" * 32).check_lengths()

    def test_given_before_environment(self) -> None:
        environ = {"XDG_RUNTIME_DIR": self.directory}
        os.mkdir(self.path("other"))
        self.assertEqual(find_runtime_dir(environ=environ), self.directory)
        self.assertEqual(find_runtime_dir(self.path("other"), environ=environ), self.path("other"))
        self.assertEqual(RuntimePaths.find("two", environ=environ), RuntimePaths(self.directory, "two"))

    def test_given_but_unusable(self) -> None:
        environ = {"XDG_RUNTIME_DIR": self.path("missing")}
        error = self.assertRaises(ConfigError, find_runtime_dir, environ=environ)
        self.assertIn("XDG_RUNTIME_DIR names", error.cause)
        self.assertIn("mkdir", error.cure)
        with mock.patch("os.access", return_value=False):
            self.assertRaises(PermissionRefused, find_runtime_dir, self.directory)

    def test_bare_shell(self) -> None:
        os.mkdir(self.path("run"))
        os.mkdir(self.path("tmp"))
        name = f"anbox-runtime-{os.geteuid()}"
        options = {"run": self.path("run"), "tmp": self.path("tmp")}
        found = find_runtime_dir(environ={}, **options)
        self.assertEqual(found, f"{self.path('run')}/{name}")
        self.assertEqual(stat.S_IMODE(os.stat(found).st_mode), 0o700)
        self.assertEqual(find_runtime_dir(environ={"XDG_RUNTIME_DIR": ""}, **options), found)
        with mock.patch("os.access", return_value=False):
            self.assertEqual(find_runtime_dir(environ={}, **options), f"{self.path('tmp')}/{name}")

    def test_private_directory_that_is_not_ours_alone(self) -> None:
        path = self.path("private")
        os.mkdir(path, 0o700)
        os.chmod(path, 0o750)
        error = self.assertRaises(PermissionRefused, private_directory, path)
        self.assertEqual(error.cure, f"chmod 0700 {path}")
        os.chmod(path, 0o700)
        with mock.patch("os.geteuid", return_value=4711):
            self.assertIn(
                "belongs to uid", self.assertRaises(PermissionRefused, private_directory, path).cause
            )
        os.symlink(path, self.path("link"))
        self.assertRaises(ConfigError, private_directory, self.path("link"))
        self.assertRaises(PermissionRefused, private_directory, self.path("no/such"))

    def test_make_directories(self) -> None:
        for instance in ("default", "two"):
            paths = RuntimePaths(self.directory, instance)
            paths.make_directories()
            os.chmod(paths.sockets, 0o755)
            paths.make_directories()
            self.assertEqual(stat.S_IMODE(os.stat(paths.sockets).st_mode), 0o755)
            self.assertEqual(stat.S_IMODE(os.stat(paths.input).st_mode), 0o755)

    def test_directories_that_cannot_be_made(self) -> None:
        paths = RuntimePaths(self.directory)
        open(paths.root, "w").close()
        self.assertRaises(ConfigError, paths.make_directories)
        os.unlink(paths.root)
        paths.make_directories()
        with mock.patch("os.geteuid", return_value=4711):
            self.assertRaises(PermissionRefused, paths.make_directories)
        self.assertRaises(PermissionRefused, RuntimePaths("/proc/self/no").make_directories)
