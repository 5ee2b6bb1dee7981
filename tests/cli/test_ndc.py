"""Where ``anbox ndc`` finds an instance's netd."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.cli.ndc import find_socket
from anbox_tw.errors import NotRunning


class FindTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.runtime = tempfile.mkdtemp(prefix="atw-ndc-")
        self.addCleanup(shutil.rmtree, self.runtime, True)
        environ = {**os.environ, "XDG_RUNTIME_DIR": self.runtime}
        environ.pop("ANBOX_NETD_SOCKET_DIR", None)
        self.patch(os, "environ", environ)

    def listening(self, directory: str) -> str:
        path = os.path.join(self.runtime, "anbox", directory)
        os.makedirs(path)
        made = socket.socket(socket.AF_UNIX)
        self.addCleanup(made.close)
        made.bind(f"{path}/netd")
        return f"{path}/netd"

    def test_the_instances_own(self) -> None:
        one, default = self.listening("instances/one/netd"), self.listening("netd")
        self.assertEqual(find_socket("netd", "one"), one)
        self.assertEqual(find_socket("netd", "default"), default)
        self.assertEqual(find_socket("/x/netd", "one"), "/x/netd")

    def test_an_instance_that_does_not_run(self) -> None:
        self.patch(importlib.import_module("anbox_tw.cli.ndc"), "DEFAULT_SOCKET_DIR", self.runtime)
        error = self.assertRaises(NotRunning, find_socket, "netd", "one")
        self.assertIn("anbox up --instance one", error.cure)
        self.listening("instances/two/netd")
        for instance in ("one", "default"):
            error = self.assertRaises(NotRunning, find_socket, "netd", instance)
            self.assertIn("these have one: two", error.cure)
        self.listening("netd")
        error = self.assertRaises(NotRunning, find_socket, "netd", "one")
        self.assertIn("these have one: default, two", error.cure)
