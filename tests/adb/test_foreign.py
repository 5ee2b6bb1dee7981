"""Other people's clients against our adbd: adb-shell straight, adbutils through our server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import adbutils
from adb_shell.adb_device import AdbDeviceTcp
from adb_shell.auth.sign_cryptography import CryptographySigner
from twisted.internet.endpoints import serverFromString
from twisted.internet.threads import deferToThread

from anbox_tw.adb import AdbKey, Authority
from anbox_tw.adb.client import AdbClient
from anbox_tw.adb.daemon import DaemonConfig
from anbox_tw.adb.server.server import AdbServer
from tests.adb.real import DaemonTestCase, free_port, reactor


class AdbShellTests(DaemonTestCase):
    async def test_everything_it_does(self) -> None:
        folder = self.folder()
        key = AdbKey.generate("adb-shell")
        key.save(f"{folder}/key")
        port = await self.serve(DaemonConfig(authority=Authority("refuse", keys=[key.public])))
        Path(folder, "source").write_bytes(os.urandom(3_000_000))

        def use() -> dict[str, Any]:
            device = AdbDeviceTcp("127.0.0.1", port, default_transport_timeout_s=10)
            device.connect(rsa_keys=[CryptographySigner(f"{folder}/key")], auth_timeout_s=10)
            try:
                device.push(f"{folder}/source", f"{folder}/there")
                device.pull(f"{folder}/there", f"{folder}/back")
                return {
                    "shell": device.shell("echo hi"),
                    "lines": list(device.streaming_shell("seq 3")),
                    "exec": device.exec_out("printf x", decode=False),
                    "list": [entry.filename for entry in device.list(folder)],
                    "stat": device.stat(f"{folder}/source"),
                }
            finally:
                device.close()

        result = await deferToThread(use)
        self.assertEqual((result["shell"], result["exec"]), ("hi\n", b"x"))
        self.assertEqual("".join(result["lines"]), "1\n2\n3\n")
        self.assertIn(b"source", result["list"])
        self.assertEqual(result["stat"][1], 3_000_000)
        self.assertEqual(Path(folder, "back").read_bytes(), Path(folder, "source").read_bytes())

    async def test_unknown_key(self) -> None:
        folder = self.folder()
        AdbKey.generate("adb-shell").save(f"{folder}/key")
        port = await self.serve(DaemonConfig(authority=Authority("refuse")))

        def use() -> None:
            device = AdbDeviceTcp("127.0.0.1", port, default_transport_timeout_s=5)
            try:
                device.connect(rsa_keys=[CryptographySigner(f"{folder}/key")], auth_timeout_s=0.5)
            finally:
                device.close()

        await self.assertFailure(deferToThread(use), Exception)


class AdbutilsTests(DaemonTestCase):
    async def test_everything_it_does(self) -> None:
        folder = self.folder()
        port = await self.serve(DaemonConfig(properties={"ro.product.model": "Model T"}))
        server_port = free_port()
        endpoint = serverFromString(reactor, f"tcp:{server_port}:interface=127.0.0.1")
        server = AdbServer(reactor, endpoint, keys=[])
        server.startService()
        self.addCleanup(server.stopService)
        await AdbClient(reactor, _client(server_port)).connect(f"localhost:{port}")
        Path(folder, "source").write_bytes(os.urandom(2_000_000))

        def use() -> dict[str, Any]:
            client = adbutils.AdbClient(host="127.0.0.1", port=server_port, socket_timeout=10)
            device = client.device()
            answers = {
                "serial": device.serial,
                "shell": device.shell("echo hi"),
                "code": device.shell2("(exit 5)").returncode,
                "model": device.prop.model,
                "push": device.sync.push(f"{folder}/source", f"{folder}/there"),
                "stat": device.sync.stat(f"{folder}/there").size,
                "list": [entry.path for entry in device.sync.list(folder)],
                "forward": device.forward_port(9),
                "forwards": [(item.remote) for item in device.forward_list()],
            }
            device.sync.pull(f"{folder}/there", f"{folder}/back")
            device.reverse("tcp:0", "tcp:9")
            answers["reverses"] = [item.local for item in device.reverse_list()]
            stream = device.shell("echo streamed", stream=True)
            answers["streamed"] = stream.read_until_close()
            return answers

        result = await deferToThread(use)
        self.assertEqual(result["serial"], f"localhost:{port}")
        self.assertEqual((result["shell"], result["code"], result["model"]), ("hi", 5, "Model T"))
        self.assertEqual((result["push"], result["stat"]), (2_000_000, 2_000_000))
        self.assertIn("source", result["list"])
        self.assertEqual((result["forwards"], result["reverses"]), (["tcp:9"], ["tcp:9"]))
        self.assertEqual(result["streamed"], "streamed\n")
        self.assertEqual(Path(folder, "back").read_bytes(), Path(folder, "source").read_bytes())


def _client(port: int) -> Any:
    from twisted.internet.endpoints import TCP4ClientEndpoint

    return TCP4ClientEndpoint(reactor, "127.0.0.1", port)
