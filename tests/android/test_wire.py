"""Names into addresses, against the golden vectors and the kernel itself."""

from __future__ import annotations

import json
import socket

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.android._wire import Namespace, control_key, sockaddr_un, sun_path
from anbox_tw.android.errors import AddressError
from tests.support import REPOSITORY

VECTORS = json.loads((REPOSITORY / "protocols/android/vectors/localsocket.json").read_text())["vectors"]


class AddressTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        for vector in VECTORS:
            namespace = Namespace[vector["namespace"].upper()]
            directory = vector.get("socket_directory", "/dev/socket")
            if "error" in vector:
                with self.assertRaises(AddressError, msg=str(vector)):
                    sockaddr_un(vector["name"], namespace, socket_directory=directory)
            else:
                data = sockaddr_un(vector["name"], namespace, socket_directory=directory)
                self.assertEqual(data.hex(), vector["sockaddr_un"])
                self.assertEqual(len(data), vector["length"])

    def test_namespaces_have_javas_numbers(self) -> None:
        self.assertEqual([int(namespace) for namespace in Namespace], [0, 1, 2])

    def test_the_kernel_sees_the_same_abstract_name(self) -> None:
        for name in ("x", "anbox-tw-test-é", "y" * 107):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(sun_path(name, Namespace.ABSTRACT))
                self.assertEqual(sock.getsockname(), b"\0" + name.encode())

    @settings(derandomize=True, deadline=None)
    @given(st.text(max_size=130), st.sampled_from(list(Namespace)))
    def test_nothing_is_ever_cut(self, name: str, namespace: Namespace) -> None:
        try:
            data = sockaddr_un(name, namespace)
        except (AddressError, UnicodeEncodeError):
            return
        self.assertLessEqual(len(data), 110)
        self.assertIn(name.encode("utf-8", "surrogateescape"), data)

    def test_the_key_of_a_control_socket(self) -> None:
        self.assertEqual(control_key("installd"), "ANDROID_SOCKET_installd")
        self.assertEqual(len(control_key("n" * 48)), 63)
        for bad in ("n" * 49, "", "a=b", "a\0"):
            with self.assertRaises(AddressError):
                control_key(bad)
