"""Credentials of peers, and what processes are called."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.errors import NetworkError
from anbox_tw.network import Credentials, describe_process, peer_credentials, peer_groups, process_command
from tests.support import need_root

CLIENT = """
import os, socket, sys
os.setgroups([71, 72]); os.setgid(4321); os.setuid(1234)
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.recv(1)
"""


class CredentialsTests(SynchronousTestCase):
    def pair(self) -> socket.socket:
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        return near

    def test_own(self) -> None:
        near = self.pair()
        me = Credentials(os.getpid(), os.geteuid(), os.getegid())
        self.assertEqual(peer_credentials(near), me)
        self.assertEqual(peer_credentials(SimpleNamespace(getHandle=lambda: near)), me)
        self.assertEqual(peer_groups(near), frozenset(os.getgroups()))

    def test_another_user(self) -> None:
        need_root()
        path = f"/tmp/ground-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            self.addCleanup(os.unlink, path)
            os.chmod(path, 0o666)
            server.listen()
            with subprocess.Popen([sys.executable, "-c", CLIENT, path], env={}) as process:
                server.settimeout(10)
                accepted, _ = server.accept()
                with accepted:
                    who = peer_credentials(accepted)
                    self.assertEqual((who.pid, who.uid, who.gid), (process.pid, 1234, 4321))
                    self.assertEqual(peer_groups(accepted), {71, 72})

    def test_given_by_a_test(self) -> None:
        transport = SimpleNamespace(peer_credentials=Credentials(1, 2, 3), peer_groups=frozenset({4}))
        self.assertEqual(peer_credentials(transport), Credentials(1, 2, 3))
        self.assertEqual(peer_groups(transport), {4})

    def test_no_unix_socket(self) -> None:
        def gone() -> None:
            raise AttributeError("socket")

        with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as lonely:
            for transport in (tcp, lonely, StringTransport(), SimpleNamespace(getHandle=gone)):
                self.assertRaises(NetworkError, peer_credentials, transport)

    def test_too_many_groups(self) -> None:
        near = self.pair()
        with mock.patch("anbox_tw.network.credentials._option", side_effect=NetworkError("x")):
            self.assertRaises(NetworkError, peer_groups, near)
        near.close()
        self.assertRaises(NetworkError, peer_groups, near)


class CommandTests(SynchronousTestCase):
    def test_command(self) -> None:
        with subprocess.Popen(
            ["cat", "-", "a b"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b"x")
            process.stdin.flush()
            process.stdout.read(1)
            command, described = process_command(process.pid), describe_process(process.pid)
        self.assertEqual(command, "cat - a b")
        self.assertEqual(described, f"pid {process.pid}, command cat - a b")

    def test_nobody(self) -> None:
        self.assertEqual(process_command(2**30), "unknown")
        self.assertEqual(describe_process(0), "a process that is not visible from here")

    def test_kernel_thread_or_empty(self) -> None:
        opened = mock.mock_open(read_data=b"")
        opened.side_effect = [mock.mock_open(read_data=b"")(), mock.mock_open(read_data=b"kthreadd\n")()]
        with mock.patch("builtins.open", opened):
            self.assertEqual(process_command(2), "kthreadd")

    def test_hostile_names_are_cut_and_cleaned(self) -> None:
        with mock.patch("builtins.open", mock.mock_open(read_data=b"a\x1b[31m\xff\0" + b"b" * 500)):
            text = process_command(1)
        self.assertTrue(text.startswith("a?[31m"))
        self.assertEqual(len(text), 120)
        self.assertTrue(text.isprintable())
