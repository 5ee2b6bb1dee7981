"""Real buses: a dbus-daemon of the test's own, and the programs that talk to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import connectProtocol
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.session.dbus.addresses import parse_addresses
from anbox_tw.session.dbus.connection import BusConnection
from tests.support import need_tool

HEAD = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">"""

OPEN = '<policy context="default"><allow send_destination="*"/><allow own="*"/><allow receive_sender="*"/><allow user="*"/></policy>'

LIMITS = '<limit name="max_replies_per_connection">10000</limit>'

SYSTEM = """<policy context="default"><allow user="*"/><deny own="*"/><deny send_type="method_call"/>
<allow send_type="signal"/><allow send_requested_reply="true" send_type="method_return"/>
<allow send_requested_reply="true" send_type="error"/><allow receive_type="method_call"/>
<allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
<allow send_destination="org.freedesktop.DBus"/></policy>"""
"""As /usr/share/dbus-1/system.conf."""


class Bus:
    """A dbus-daemon."""

    def __init__(self, case: SynchronousTestCase, policy: str = OPEN, services: str = "") -> None:
        self._program = need_tool("dbus-daemon")
        self.directory = Path(tempfile.mkdtemp(prefix="adb-"))
        case.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.directory.chmod(0o755)
        self.path = self.directory / "bus"
        self.address = f"unix:path={self.path}"
        self._config = self.directory / "bus.conf"
        where = f"<servicedir>{services}</servicedir>" if services else ""
        self._config.write_text(
            f"{HEAD}<busconfig><type>session</type><listen>{self.address}</listen><auth>EXTERNAL</auth>"
            f"{where}{policy}{LIMITS}</busconfig>"
        )
        self._daemon: subprocess.Popen[bytes] | None = None
        case.addCleanup(self.end)
        self.start()

    def start(self) -> None:
        read, write = os.pipe()
        self._daemon = subprocess.Popen(
            [
                self._program,
                f"--config-file={self._config}",
                "--nofork",
                "--nopidfile",
                f"--print-address={write}",
            ],
            pass_fds=[write],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(write)
        with open(read) as told:
            assert told.readline().startswith("unix:"), "dbus-daemon does not start"

    def end(self) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.kill()
            daemon.wait()
            self.path.unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DBUS_SESSION_BUS_ADDRESS": self.address,
            "DBUS_SYSTEM_BUS_ADDRESS": self.address,
            "LC_ALL": "C.UTF-8",
        }

    async def run(self, *command: str) -> tuple[str, str, int]:
        """Run a program on the bus: output, complaints, exit code."""
        out, err, code = await getProcessOutputAndValue(
            need_tool(command[0]), command[1:], env=self.environment()
        )
        return out.decode(), err.decode(), code

    async def client(self, case: TestCase, signals: list[Any] | None = None) -> BusConnection:
        """A connection of the test's own."""
        take = (lambda signal: None) if signals is None else signals.append
        connection = BusConnection(reactor, lambda call, wants: None, take)
        (address,) = parse_addresses(self.address)
        await connectProtocol(address.endpoint(reactor), connection)
        await connection.ready

        def end() -> Any:
            connection.close()
            return connection.when_lost()

        case.addCleanup(end)
        return connection
