"""adb 36's own server beside ours, the same device behind both: the same requests get the same bytes.

What differs on purpose is not listed here: texts where adb's server says nothing (``FAIL0000``), leaves a connection open
that it has given up, or ends itself (``host:pair:1:``, ``reverse:nonsense``), and ``host:reconnect``, after which it forgets
a TCP device and ours connects again.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
from typing import Any

from twisted.internet.threads import deferToThread

from anbox_tw.adb import AdbKey
from anbox_tw.adb.server.known_hosts import KnownHosts
from anbox_tw.adb.server.pairing import Pairer
from tests.adb.real import RealAdb, free_port, reactor
from tests.adb.server.test_real_clients import ServerTestCase

TIMEOUT_S = 20

ENDING = [
    "",
    "host:version",
    "host:devices",
    "host:devices-l",
    "host:features",
    "host:host-features",
    "host:get-state",
    "host:get-serialno",
    "host:get-devpath",
    "host-serial:{device}:get-state",
    "host-serial:{device}:get-serialno",
    "host-serial:{device}:get-devpath",
    "host-serial:{device}:features",
    "host-serial:localhost:get-state",
    "host-serial:tcp:{device}:get-state",
    "host-serial:nosuch:get-state",
    "host-serial:model:Anbox:get-state",
    "host-serial:product:anbox:get-state",
    "host-serial:device:anbox:get-state",
    "host-serial:{device}",
    "host-serial:",
    "host-serial",
    "host-transport-id:1:get-state",
    "host-transport-id:99:get-state",
    "host-usb:get-state",
    "host-local:get-state",
    "host-any:get-state",
    "host:transport-usb",
    "host:transport:nosuch",
    "host:transport-id:99",
    "host:transport-id:x",
    "host:tport:usb",
    "host:tport:serial:nosuch",
    "host:list-forward",
    "host:killforward-all",
    "host:killforward:tcp:1",
    "host:killforward:",
    "host-serial:{device}:killforward:tcp:1",
    "host:forward:",
    "host:forward:tcp:0",
    "host:forward:tcp:0;",
    "host:forward:;tcp:1",
    "host:forward:tcp:0;*foo",
    "host:forward:tcp:99999;tcp:1",
    "host:forward:tcp:x;tcp:1",
    "host:forward:tcp:-1;tcp:1",
    "host:forward:foo:x;tcp:1",
    "host:forward:foo;tcp:1",
    "host:forward:localfilesystem:/nonexistent/x;tcp:1",
    "host:forward:tcp:1.2.3.4:5;tcp:1",
    "host:forward:tcp:nosuch.invalid:5;tcp:1",
    "host:forward:tcp:{taken};tcp:1",
    "host-serial:{device}:forward:tcp:{free};tcp:1",
    "host-serial:{device}:forward:norebind:tcp:{free};tcp:2",
    "host-serial:{device}:forward:tcp:{free};tcp:3",
    "host:forward:tcp:localhost:{other};tcp:4",
    "host:forward:localabstract:{abstract};tcp:5",
    "host:list-forward",
    "host-serial:{device}:list-forward",
    "host-serial:{device}:killforward:tcp:{free}",
    "host-usb:killforward-all",
    "host:connect:",
    "host:connect:127.0.0.1:1",
    "host:connect::",
    "host:connect::5",
    "host:connect:127.0.0.1:x",
    "host:connect:127.0.0.1:99999",
    "host:connect:[::1]:1",
    "host:connect:{device}",
    "host:connect:emu:5554",
    "host:connect:emu:5554,",
    "host:connect:emu:a,b",
    "host:connect:emu:0,0",
    "host:connect:emu:1,1",
    "host:disconnect:nosuch",
    "host:disconnect:127.0.0.1:9",
    "host:pair:123456:127.0.0.1:1",
    "host:pair:123456",
    "host:pair:",
    "host:mdns:check",
    "host:mdns:services",
    "host:mdns:foo",
    "host:mdns",
    "host:emulator:x",
    "host:emulator:",
    "host:wait-for",
    "host:wait-for-any",
    "host:wait-for-any-foo",
    "host:wait-for-foo-device",
    "host:wait-for-any-device",
    "host:wait-for-local-device",
    "host:wait-for-usb-disconnect",
    "host:wait-for-any-any",
    "host:wait-for-any-recovery-device",
    "host-serial:{device}:wait-for-any-device",
    "host-serial:nosuch:wait-for-any-disconnect",
    "host:reconnect-offline",
    "host:attach",
    "host:detach",
    "host-serial:{device}:attach",
    "host-serial:nosuch:attach",
    "host-serial:{device}:detach",
    "host:foo",
    "host:",
    "host",
    "foo:bar",
    "shell:id",
    "tport:any",
    "host:version:x",
    "host:kill:x",
    "host:devices:x",
    "host:list-mdns-known-hosts",
    "host:track-mdns-services",
    "host:start-server",
    "host-serial:{device}:foo",
    "host-serial:nosuch:version",
    "host-serial:nosuch:devices",
    "host-serial:nosuch:features",
    "host-usb:devices",
    "host-transport-id:99:version",
    "",
][1:-1]
"""Requests after whose answer the server closes, in an order that matters to some."""

SWITCHES = ("host:tport:any", "host:tport:local", "host:tport:serial:{device}", "host:transport-any",
            "host:transport-local", "host:transport:", "host:transport:{device}", "host:transport-id:1")  # fmt: skip
AFTER_SWITCH = ("host:get-state", "host:features", "host-serial:nosuch:get-state", "host:wait-for-any-device",
                "host:foo", "host:killforward-all", "shell:echo hi", "exec:echo hi", "shell,v2,raw:exit 3", "foo:bar",
                "tcp:1", "reverse:list-forward", "reverse:killforward:tcp:1", "host:tport:usb")  # fmt: skip

TRACKERS = ("host:track-devices", "host:track-devices-l", "host:track-devices-proto-text",
            "host:track-devices-proto-binary")  # fmt: skip
RAW = (b"0000", b"zzzz", b"000Chost:version", b" 00chost:version", b"-00chost:version", b"0x0chost:version")

COMMANDS = [
    r"",
    r"version",
    r"devices",
    r"devices -l",
    r"get-state",
    r"get-serialno",
    r"get-devpath",
    r"features",
    r"host-features",
    r"mdns check",
    r"-d get-state",
    r"-e get-state",
    r"-s nosuch get-state",
    r"-s nosuch shell id",
    r"-t 99 shell id",
    r"-s model:Anbox get-state",
    r"wait-for-device",
    r"wait-for-foo",
    r"wait-for-usb-disconnect",
    r"-s nosuch wait-for-disconnect",
    r"connect",
    r"connect 127.0.0.1:1",
    r"connect {device}",
    r"connect foo:bar",
    r"disconnect foo",
    r"forward tcp:{free} tcp:9",
    r"forward --no-rebind tcp:{free} tcp:9",
    r"forward tcp:{free} tcp:10",
    r"forward --list",
    r"forward --remove tcp:{free}",
    r"forward --remove tcp:{free}",
    r"forward --remove-all",
    r"forward tcp:x tcp:1",
    r"forward foo tcp:1",
    r"forward tcp:0",
    r"reverse tcp:{free} tcp:9",
    r"reverse --no-rebind tcp:{free} tcp:9",
    r"reverse tcp:{free} tcp:10",
    r"reverse --remove tcp:{free}",
    r"reverse --remove tcp:{free}",
    r"reverse tcp:x tcp:1",
    r"reverse foo:x tcp:1",
    r"reverse --remove-all",
    r"shell exit 7",
    r'shell "echo out; echo err >&2; exit 3"',
    r"shell -t echo hi",
    r"shell -T echo hi",
    r'shell -x "exit 7"',
    r"shell -n cat",
    r"exec-out echo hi",
    r"exec-in cat",
    r"shell nosuchcommand",
    r"ls {folder}",
    r"ls /nosuch",
    r"pull /nosuch {folder}/x",
    r"pull {folder}/file /nosuch/x",
    r"push /nosuch {folder}",
    r"root",
    r"unroot",
    r"remount",
    r"usb",
    r"tcpip 99999",
    r"tcpip foo",
    r"disable-verity",
    r"enable-verity",
    r"install {folder}/file",
    r"install nosuch.apk",
    r"uninstall com.nosuch",
    r"abb package list",
    r"pair 127.0.0.1:1 123456",
    r"attach",
    r"detach",
    r'exec-out "echo a; exit 3"',
    r'shell "head -c 100000 /dev/zero | wc -c"',
    r"",
][1:-1]


def exchange(port: int, *requests: str | bytes) -> bytes:
    """Send requests, each after the answer to the one before has begun; all that comes until the end of file."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as link:
        answer = b""
        for index, request in enumerate(requests):
            if index:
                answer += link.recv(4)  # the OKAY of a switch
            link.sendall(b"%04x" % len(request) + request.encode() if isinstance(request, str) else request)
        try:
            while data := link.recv(65536):
                answer += data
        except ConnectionResetError:
            pass  # what was still to be read makes a close a reset
        return answer


def first_frame(port: int, request: str) -> bytes:
    """What a tracker says at once."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as link,
        link.makefile("rb") as file,
    ):
        link.sendall(b"%04x" % len(request) + request.encode())
        head = file.read(8)
        return head + file.read(int(head[4:], 16))


class SideBySideTests(ServerTestCase):
    timeout = 120

    async def both(self) -> None:
        """Both servers with one device; ``self.adb`` is the client of ours, ``self.theirs`` of adb's own."""
        await self.connected()
        self.server._pairing = Pairer(reactor, AdbKey.generate(), KnownHosts(f"{self.folder()}/known"))
        self.theirs = RealAdb(self, "36")
        await self.theirs.run("start-server")
        await self.theirs.connect(self.device_port)
        self.fields = [self.names(), self.names()]

    def names(self) -> dict[str, Any]:
        """Names and ports of its own for each server."""
        free = free_port()
        held = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(held.close)
        return {
            "device": f"localhost:{self.device_port}",
            "taken": held.getsockname()[1],
            "free": free,
            "other": free_port(),
            "abstract": f"anbox-tw-{os.getpid()}-{free}",
        }

    def plain(self, answer: bytes, which: int) -> bytes:
        """``answer`` without what may differ."""
        for name in ("taken", "free", "other", "abstract"):
            answer = answer.replace(str(self.fields[which][name]).encode(), name.encode())
        answer = re.sub(rb"(?<=OKAY)000[45](?=free|other)", b"", answer)
        return re.sub(rb"host-\d+", b"host-N", answer)

    async def compare(self, *requests: str | bytes) -> None:
        answers = []
        for which, port in enumerate((self.theirs.port, self.adb.port)):
            filled = [one.format(**self.fields[which]) if isinstance(one, str) else one for one in requests]
            answers.append(self.plain(await deferToThread(exchange, port, *filled), which))
        self.assertEqual(answers[0], answers[1], requests)

    async def test_requests(self) -> None:
        await self.both()
        for request in ENDING:
            await self.compare(request)
        for words in RAW:
            await self.compare(words)

    async def test_requests_after_a_switch(self) -> None:
        await self.both()
        for switch in SWITCHES:
            for request in AFTER_SWITCH:
                await self.compare(switch, request)

    async def test_trackers(self) -> None:
        await self.both()
        for request in TRACKERS:
            theirs, ours = [
                await deferToThread(first_frame, port, request) for port in (self.theirs.port, self.adb.port)
            ]
            self.assertEqual(theirs, ours, request)

    async def test_commands(self) -> None:
        await self.both()
        folder = self.folder()
        with open(f"{folder}/file", "w") as file:
            file.write("content\n")
        for line in COMMANDS:
            said = []
            for which, adb in enumerate((self.theirs, self.adb)):
                words = shlex.split(line.format(**self.fields[which], folder=folder))
                serial, adb.serial = adb.serial, ""
                result = await adb.run(*words)
                adb.serial = serial
                out, err = self.plain(result.out, which), self.plain(result.err, which)
                said.append((result.code, out, err))
            self.assertEqual(said[0], said[1], line)
