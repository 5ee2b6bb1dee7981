"""The command line of ``twistd anbox-adb-server``."""

from __future__ import annotations

import os
from typing import Any

from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb.server import AdbServer
from anbox_tw.adb.server._proto import embedded
from anbox_tw.adb.server.discovery import MdnsDiscovery
from anbox_tw.adb.server.tap import Options, default_endpoint, makeService


class TapTests(SynchronousTestCase):
    def build(self, *arguments: str, **environment: str) -> Any:
        home = os.path.abspath(self.mktemp())
        self.patch(os, "environ", {"HOME": home, "ADB_EMU": "0", **environment})
        options = Options()
        options.parseOptions(["--listen", "unix:nowhere", *arguments])
        return makeService(options)

    def test_where_clients_look(self) -> None:
        for environment, endpoint in (
            ({}, "tcp:5037:interface=127.0.0.1"),
            ({"ANDROID_ADB_SERVER_PORT": "5038"}, "tcp:5038:interface=127.0.0.1"),
            ({"ADB_SERVER_SOCKET": "tcp:localhost:5039"}, "tcp:5039:interface=127.0.0.1"),
            ({"ADB_SERVER_SOCKET": "localfilesystem:/run/adb"}, "unix:/run/adb:mode=600:lockfile=0"),
        ):
            self.assertEqual(default_endpoint(environment), endpoint)
        for environment in ({"ADB_SERVER_SOCKET": "vsock:1:2"}, {"ANDROID_ADB_SERVER_PORT": "x"}):
            self.assertRaises(UsageError, default_endpoint, environment)

    def test_pairing_and_discovery_are_there(self) -> None:
        services = list(self.build())
        (server,) = (one for one in services if isinstance(one, AdbServer))
        (found,) = (one for one in services if isinstance(one, MdnsDiscovery))
        self.assertIs(server.mdns, found)
        self.assertIsNotNone(server._pairing)

    def test_what_is_turned_off(self) -> None:
        for arguments, environment in ((["--no-mdns"], {}), ([], {"ADB_MDNS": "0"})):
            (server,) = self.build(*arguments, **environment)
            self.assertIsNone(server.mdns)
            self.assertIsNotNone(server._pairing)
        (server,) = self.build("--no-mdns", "--no-keys")
        self.assertIn(b"FAIL", self.successResultOf(server.pair("1", "localhost:2")))

    def test_an_endpoint_that_is_none(self) -> None:
        options = Options()
        options.parseOptions(["--listen", "nosuch:1"])
        self.assertRaises(UsageError, makeService, options)

    def test_server_status_names_no_back_end_of_adbs(self) -> None:
        (server,) = self.build("--no-mdns")
        reply = self.successResultOf(_awaited(server.services._server_status("", None)))
        self.assertEqual(reply[:4], b"OKAY")
        self.assertEqual(reply[8], 5 << 3 | 2)  # "version" is the first that is set
        self.assertEqual(list(embedded(reply[8:], 5)), [b"1.0.41"])


def _awaited(coroutine: Any) -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(coroutine)
