"""The session with a manager that knows what the original's knows, and answers nothing else."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from anbox_tw.network import RuntimePaths, free_port
from anbox_tw.qemu.adb_server_address import AdbServerAddress
from anbox_tw.rpc._pb.anbox_container_pb2 import StartContainer
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Invocation, Result, Void
from anbox_tw.session.manager import manager_connector
from anbox_tw.session.service import SessionService, SessionSettings
from tests.session.guest import until


class Original(Protocol):
    """Frames by hand; methods that it does not know are ignored without an answer."""

    factory: Any

    def __init__(self) -> None:
        self.buffer = b""

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 4:
            size = int.from_bytes(self.buffer[:3], "big")
            if len(self.buffer) < 4 + size:
                return
            self.assert_invocation(self.buffer[3], self.buffer[4 : 4 + size])
            self.buffer = self.buffer[4 + size :]

    def assert_invocation(self, kind: int, payload: bytes) -> None:
        assert kind == 0, kind
        invocation = Invocation.FromString(payload)
        self.factory.calls.append((invocation.method_name, invocation.parameters))
        if invocation.method_name in ("start_container", "stop_container"):
            answer = Void(error=self.factory.error) if self.factory.error else Void()
            result = Result(id=invocation.id, response=answer.SerializeToString()).SerializeToString()
            assert self.transport is not None
            self.transport.write(len(result).to_bytes(3, "big") + b"\1" + result)

    def connectionLost(self, reason: Any = None) -> None:
        self.factory.lost += 1


class OriginalFactory(Factory):
    protocol = Original
    noisy = False

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self.lost = 0
        self.error = ""


class OriginalManagerTests(TestCase):
    def setUp(self) -> None:
        self.runtime = tempfile.mkdtemp(prefix="as-")
        self.addCleanup(shutil.rmtree, self.runtime, ignore_errors=True)
        self.factory = OriginalFactory()
        path = f"{self.runtime}/manager"
        unix: Any = reactor
        self.addCleanup(unix.listenUNIX(path, self.factory).stopListening)
        paths = RuntimePaths(self.runtime)
        settings = SessionSettings(paths=paths, adb_server=AdbServerAddress(port=free_port()), console=False)
        self.session = SessionService(reactor, settings, manager_connector(reactor, path, paths))
        self.addCleanup(self.session.stopService)

    async def test_a_container_runs_at_once_and_is_stopped(self) -> None:
        self.session.startService()
        await until(lambda: self.session.state.phase.value == "running", 3)
        ((_, parameters),) = [call for call in self.factory.calls if call[0] == "start_container"]
        request = StartContainer.FromString(parameters)
        mounts = {mount.target: mount.source for mount in request.configuration.bind_mounts}
        self.assertEqual(mounts["dev/qemu_pipe"], self.session.paths.qemu_pipe)
        self.assertEqual(request.configuration.devices[0].path, "/dev/fuse")
        self.assertEqual(request.configuration.devices[0].permission, 0o666)
        self.assertIn("ro.boot.fake_battery=1", request.configuration.extra_properties)
        await self.session.stopService()
        self.assertIn("stop_container", [name for name, _ in self.factory.calls])
        await until(lambda: self.factory.lost)

    async def test_its_error_is_said_and_the_start_tried_again(self) -> None:
        self.factory.error = "Failed to start container: no binder"
        self.session.startService()
        await until(lambda: self.session.failure)
        self.assertIn("no binder", self.session.failure)
        self.factory.error = ""
        await until(lambda: self.session.state.phase.value == "running", 5)
