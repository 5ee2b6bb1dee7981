"""The daemon as a whole: start, stop, crash, many clients, garbage, dry run, twistd, ndc."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import DeferredList
from twisted.internet.threads import deferToThread
from twisted.python import usage
from zope.interface.verify import verifyObject

from anbox_tw.errors import AlreadyRunning, ConfigError, HostLacks
from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.netd import netlink
from anbox_tw.netd.connector import NativeDaemonConnector
from anbox_tw.netd.daemon import Netd, inherited_sockets, make_socket_directory
from anbox_tw.netd.namespace import NetworkNamespace
from anbox_tw.netd.on_demand import OnDemandNetd, _Creator
from anbox_tw.netd.tap import Options, makeService
from tests.netd.daemon_case import DaemonTestCase
from tests.support import REPOSITORY

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


class DaemonTests(DaemonTestCase):
    async def test_five_hundred_clients_at_once(self) -> None:
        await self.start()
        path = os.path.join(self.directory, "s", "netd")
        heard: list[str] = []
        clients = [
            # a full queue of the listener refuses; the framework waits 5 s then
            NativeDaemonConnector(
                reactor, path, on_event=lambda message: heard.append(message.text), reconnect_delay=0.05
            )
            for _ in range(500)
        ]
        for client in clients:
            client.startService()
        await DeferredList([client.when_connected(30) for client in clients], fireOnOneErrback=True)
        replies = await DeferredList([client.execute("interface", "getcfg", "lo") for client in clients])
        self.assertEqual(
            {reply.text for _, reply in replies}, {"00:00:00:00:00:00 127.0.0.1 8 up loopback running"}
        )
        self.ns.run("ip link add b0 type bridge")
        await self.until(lambda: heard.count("Iface added b0") == 500, "everybody has heard", timeout=20)
        await DeferredList([client.stopService() for client in clients])

    async def test_garbage(self) -> None:
        await self.start()
        path = os.path.join(self.directory, "s", "netd")

        def throw() -> None:
            import random

            chance = random.Random(3)
            for _ in range(30):
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(path)
                    client.settimeout(5)
                    words = [
                        b"interface",
                        b"network",
                        b"bandwidth",
                        b"firewall",
                        b"nat",
                        b"tether",
                        b"\xff",
                        b'"',
                        b"\\",
                    ]
                    for number in range(20):
                        line = b" ".join(chance.choice(words) for _ in range(chance.randrange(30)))
                        client.sendall(b"%d " % number + line + chance.choice([b"\0", b"", b"\0\0"]))
                    client.sendall(os.urandom(3000))

        await deferToThread(throw)
        await self.expect("interface getcfg lo", "213 00:00:00:00:00:00 127.0.0.1 8 up loopback running")

    async def test_a_second_daemon_is_refused_and_harms_nothing(self) -> None:
        await self.start()
        await self.expect("nat enable a0 b0 0", "200 Nat operation succeeded")
        second = Netd(
            reactor, socket_dir=os.path.join(self.directory, "s"), namespace=NetworkNamespace(self.ns.path)
        )
        self.assertRaises(AlreadyRunning, second.startService)
        self.assertFalse(second.running)
        await self.expect("bandwidth gts a0 b0", "221 a0 b0 0 0 0 0")
        self.assertIn("masquerade", self.ns.run("nft list ruleset"))

    async def test_two_daemons_of_one_namespace_need_two_tables(self) -> None:
        await self.start()
        await self.expect("network create 100", "200 success")
        rules = self.ns.run("ip rule")
        place = os.path.join(self.directory, "t")
        same = Netd(reactor, socket_dir=place, namespace=NetworkNamespace(self.ns.path))
        self.assertRaises(AlreadyRunning, same.startService)
        self.assertFalse(os.path.exists(place))
        other = Netd(reactor, socket_dir=place, namespace=NetworkNamespace(self.ns.path), table="other")
        other.startService()
        await other.when_ready()
        # what the first has made is not taken for what a dead one has left
        self.assertEqual(self.ns.run("ip rule"), rules)
        await other.stopService()
        self.assertEqual(self.ns.run("ip rule"), rules)

    async def test_on_demand(self) -> None:
        """Only the first client makes a daemon of it; the end undoes what was done."""
        before = await self.settled(self.ns)
        place = os.path.join(self.directory, "s")
        waiting = OnDemandNetd(reactor, place, namespace=NetworkNamespace(self.ns.path))
        verifyObject(IConnectionCreator, _Creator(waiting, "netd"))
        waiting.startService()
        self.assertIsNone(waiting.netd)
        self.assertEqual(os.stat(os.path.join(place, "netd")).st_mode & 0o777, 0o600)
        await self.expect("nat enable a0 b0 0", "200 Nat operation succeeded")
        self.assertIsNotNone(waiting.netd)
        self.assertNotEqual(self.ns.state(), before)
        self.assertFalse(make_socket_directory("/proc"))
        # where the sockets are taken, or the directory cannot be, nothing happens
        second = OnDemandNetd(reactor, place, namespace=NetworkNamespace(self.ns.path))
        second.startService()
        await second.stopService()
        nowhere = OnDemandNetd(reactor, "/no/such/place")
        nowhere.startService()
        await nowhere.stopService()
        self.assertIsNone(nowhere.begin())
        await self.expect("bandwidth gts a0 b0", "221 a0 b0 0 0 0 0")
        await waiting.stopService()
        self.assertEqual(self.ns.state(), before)
        self.assertFalse(os.path.exists(place))

    async def test_what_a_killed_daemon_left_is_taken_away(self) -> None:
        self.cable()
        before = await self.settled(self.ns)
        await self.start()
        for line, reply in (
            ("network create 100", "200 success"),
            ("network interface add 100 v0", "200 success"),
            ("network route add 100 v0 0.0.0.0/0 10.9.0.2", "200 success"),
            ("nat enable v0 x0 0", "200 Nat operation succeeded"),
        ):
            await self.expect(line, reply)
        assert self.netd.controllers is not None
        controllers = self.netd.controllers
        # as if killed: nothing is undone

        async def nothing() -> None:
            controllers.routes.close()

        controllers.undo = nothing  # type: ignore[method-assign]
        await self.stop()
        self.assertNotEqual(self.ns.state()["rules"], before["rules"])
        await self.start()
        self.assertEqual(self.ns.state(), before)
        await self.expect("network create 100", "200 success")
        await self.stop()
        self.assertEqual(self.ns.state(), before)

    async def test_the_sockets(self) -> None:
        await self.start(mode=0o600)
        directory = os.path.join(self.directory, "s")
        self.assertEqual(sorted(os.listdir(directory)), ["dnsproxyd", "fwmarkd", "mdns", "netd"])
        for name in os.listdir(directory):
            self.assertEqual(os.stat(os.path.join(directory, name)).st_mode & 0o777, 0o600)
        await self.stop()
        self.assertFalse(os.path.exists(directory))
        # stopping twice is all right
        await self.netd.stopService()

    async def test_it_can_be_started_again(self) -> None:
        netd = Netd(reactor, socket_dir=os.path.join(self.directory, "s"), dry_run=lambda line: None)
        for _ in range(2):
            netd.startService()
            await netd.when_ready()
            await self.expect("ipfwd status", "211 Forwarding disabled")
            await netd.stopService()
            self.assertFalse(os.path.exists(os.path.join(self.directory, "s")))

    async def test_dry_run(self) -> None:
        self.cable()
        before = await self.settled(self.ns)
        would: list[str] = []
        await self.start(dry_run=would.append)
        for line, reply in (
            ("interface setcfg v0 10.7.0.1 24 down", "200 Interface configuration set"),
            ("interface setmtu v0 1400", "200 MTU changed"),
            ("interface ipv6 v0 disable", "200 IPv6 state changed"),
            ("ipfwd enable x", "200 ipfwd operation succeeded"),
            ("nat enable v0 w0 0", "200 Nat operation succeeded"),
            ("network create 100", "200 success"),
            ("network interface add 100 v0", "200 success"),
            ("network route add 100 v0 0.0.0.0/0 10.9.0.2", "200 success"),
            ("bandwidth setiquota v0 1000", "200 Bandwidth command succeeeded"),
            ("bandwidth getiquota v0", "220 1000"),
            ("firewall enable whitelist", "200 Firewall command succeeded"),
            ("idletimer add v0 1 1", "200 Add success"),
            ("tether interface add v0", "200 Tether operation succeeded"),
            ("tether start 10.9.0.5 10.9.0.9", "200 Tether operation succeeded"),
            ("tether stop", "200 Tether operation succeeded"),
            ("pppd attach ttyS0 1.1.1.1 2.2.2.2 3.3.3.3 4.4.4.4", "200 Pppd operation succeeded"),
            (
                "pppd attach ttyS0 1.1.1.1 2.2.2.2 3.3.3.3 4.4.4.4",
                "400 Pppd operation failed (Device or resource busy)",
            ),
            ("pppd detach ttyS0", "200 Pppd operation succeeded"),
            ("softap set wlan0 net hidden 36 wpa2-psk password", "214 Ok"),
            ("softap startap", "214 Ok"),
            ("softap startap", "214 Ok"),
            ("softap status", "214 Softap service is running"),
            ("softap stopap", "214 Ok"),
            ("clatd start v0", "200 Clatd operation succeeded"),
            ("clatd status v0", "223 Clatd status: started"),
            ("clatd stop v0", "200 Clatd operation succeeded"),
            ("network destroy 100", "200 success"),
        ):
            await self.expect(line, reply)
        self.assertEqual(self.ns.state(), before)
        for line in (
            "ip link set v0 down",
            "ip addr add 10.7.0.1/24 dev v0",
            "ip addr del 10.9.0.1/24 dev v0",
            "ip link set v0 mtu 1400",
            "echo 1 > /proc/sys/net/ipv6/conf/v0/disable_ipv6",
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
        ):
            self.assertIn(line, would)
        self.assertTrue(any(line.startswith("nft {") and "masquerade" in line for line in would))
        self.assertTrue(
            any(line.startswith("ip rule add pref 13000 fwmark 0x10064/0x1ffff lookup") for line in would)
        )
        self.assertTrue(any(line.startswith("ip route add 0.0.0.0/0 table") for line in would))
        self.assertTrue(any(line.startswith("dnsmasq --keep-in-foreground") for line in would))
        self.assertTrue(
            any(line.startswith("pppd -detach /dev/ttyS0 115200 1.1.1.1:2.2.2.2") for line in would)
        )
        await self.stop()
        self.assertEqual(self.ns.state(), before)

    async def test_without_pyroute2(self) -> None:
        def missing() -> Any:
            raise HostLacks("netd needs pyroute2, which cannot be imported", "pip install pyroute2")

        self.patch(netlink, "pyroute2_parts", missing)
        netd = Netd(
            reactor, socket_dir=os.path.join(self.directory, "s"), namespace=NetworkNamespace(self.ns.path)
        )
        self.assertRaises(HostLacks, netd.startService)
        self.assertFalse(os.path.exists(os.path.join(self.directory, "s")))

    def test_unknown_sockets_and_namespaces(self) -> None:
        self.assertRaises(ConfigError, Netd, reactor, sockets=("netd", "what"))
        self.assertRaises(ConfigError, NetworkNamespace, "no-such-namespace")


class InheritedTests(DaemonTestCase):
    def test_variables(self) -> None:
        with socket.socket(socket.AF_UNIX) as good, socket.socket(socket.AF_INET) as other:
            fd = good.fileno()
            self.assertEqual(inherited_sockets({}), {})
            self.assertEqual(inherited_sockets({"ANDROID_SOCKET_netd": str(fd)}), {"netd": fd})
            for wrong in ("x", str(other.fileno()), "9999"):
                self.assertRaises(ConfigError, inherited_sockets, {"ANDROID_SOCKET_mdns": wrong})
        pid = str(os.getpid())
        self.assertRaises(ConfigError, inherited_sockets, {"LISTEN_PID": pid, "LISTEN_FDS": "x"})
        self.assertEqual(inherited_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}), {})

    def test_systemd(self) -> None:
        from anbox_tw.netd import daemon

        first, second = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.addCleanup(first.close)
        self.addCleanup(second.close)
        # systemd's are next to each other
        start = fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, 300)
        self.addCleanup(os.close, start)
        following = fcntl.fcntl(second, fcntl.F_DUPFD_CLOEXEC, start + 1)
        self.addCleanup(os.close, following)
        self.assertEqual(following, start + 1)
        self.patch(daemon, "_SD_LISTEN_FDS_START", start)
        base = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
        self.assertEqual(inherited_sockets(base), {"netd": start, "dnsproxyd": start + 1})
        named = {**base, "LISTEN_FDNAMES": "anbox-fwmarkd.socket:mdns"}
        self.assertEqual(inherited_sockets(named), {"fwmarkd": start, "mdns": start + 1})

    async def test_an_adopted_socket_that_init_has_only_bound(self) -> None:
        path = os.path.join(self.directory, "given")
        given = socket.socket(socket.AF_UNIX)
        given.bind(path)
        netd = Netd(
            reactor,
            socket_dir=os.path.join(self.directory, "none"),
            namespace=NetworkNamespace(self.ns.path),
            sockets=("netd",),
            adopted={"netd": given.detach()},
        )
        netd.startService()
        self.addCleanup(netd.stopService)
        client = NativeDaemonConnector(reactor, path)
        client.startService()
        self.addCleanup(client.stopService)
        await client.when_connected()
        self.assertEqual((await client.execute("tether", "status")).text, "Tethering services stopped")
        self.assertFalse(os.path.exists(os.path.join(self.directory, "none")))


class CommandLineTests(DaemonTestCase):
    def options(self, *words: str) -> Options:
        options = Options()
        options.parseOptions(list(words))
        return options

    def test_options(self) -> None:
        options = self.options("--socket-dir", "x", "--sockets", "netd,mdns", "--mode", "600", "--group", "0")
        self.assertEqual(options["sockets"], ("netd", "mdns"))
        self.assertEqual((options["mode"], options["gid"]), (0o600, 0))
        self.assertTrue(os.path.isabs(options["socket-dir"]))
        self.assertEqual(self.options("--group", "root")["gid"], 0)
        for words in (
            ("--sockets", "what"),
            ("--sockets", ""),
            ("--mode", "9"),
            ("--mode", "7777"),
            ("--group", "no-such-group"),
            ("--table", "a b"),
        ):
            self.assertRaises(usage.UsageError, self.options, *words)
        service: Any = makeService(self.options("--socket-dir", "/x", "--dry-run", "--netns", self.ns.path))
        service.prepare()
        self.assertEqual(service.netd.socket_dir, "/x")
        service.netd._namespace.close()
        unknown: Any = makeService(self.options("--netns", "no-such-namespace"))
        self.assertRaises(ConfigError, unknown.prepare)
        self.assertIn("ndc", Options.longdesc)

    def ndc(self, *words: str, timeout: float = 30) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "anbox_tw.cli", "ndc", *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**ENVIRONMENT, "ANBOX_NETD_SOCKET_DIR": os.path.join(self.directory, "s")},
        )

    async def test_twistd_and_ndc(self) -> None:
        """The real programs, in the namespace by --netns; SIGTERM leaves it as it was."""
        self.ns.run("ip link add b0 type bridge")
        before = await self.settled(self.ns)
        words = [
            sys.executable,
            "-c",
            "from twisted.scripts.twistd import run; run()",
            "-n",
            "--pidfile=",
            "anbox-netd",
        ]
        words += ["--socket-dir", os.path.join(self.directory, "s"), "--netns", self.ns.path]
        with subprocess.Popen(
            words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.directory
        ) as daemon:
            output: list[bytes] = []
            assert daemon.stdout is not None
            reader = threading.Thread(target=lambda: output.extend(daemon.stdout))  # type: ignore[arg-type]
            reader.start()
            try:
                await self.answering(os.path.join(self.directory, "s", "netd"))
                done = await deferToThread(self.ndc, "interface", "list")
                self.assertEqual(
                    (done.returncode, done.stdout),
                    (0, "110 0 lo\n110 0 b0\n200 0 Interface list completed\n"),
                    done.stderr,
                )
                done = await deferToThread(
                    self.ndc, "12", "interface", "setcfg", "b0", "10.1.1.1", "24", "up"
                )
                self.assertEqual((done.returncode, done.stdout), (0, "200 12 Interface configuration set\n"))
                done = await deferToThread(self.ndc, "interface", "getcfg", "nope")
                self.assertEqual(
                    (done.returncode, done.stdout), (1, "400 0 Interface not found (No such device)\n")
                )
                done = await deferToThread(self.ndc, "--json", "what")
                self.assertEqual(done.returncode, 2)
                self.assertEqual(
                    json.loads(done.stdout), {"code": 500, "sequence": 0, "text": "Command not recognized"}
                )
                done = await deferToThread(self.ndc, "mdns", "mdnssd", "what")
                self.assertEqual(done.stdout, "500 0 Unknown mdnssd cmd\n")
                done = await deferToThread(self.ndc, "--socket", "/no/such/socket", "what")
                self.assertEqual(done.returncode, 3, done.stderr)
                done = await deferToThread(self.ndc, "a" * 5000)
                self.assertEqual(done.returncode, 2, done.stderr)
                await self.monitor()
            finally:
                daemon.send_signal(signal.SIGTERM)
                code = await deferToThread(daemon.wait, 30)
                await deferToThread(reader.join)
        # Twisted ends by the signal it got
        self.assertIn(code, (0, -signal.SIGTERM), b"".join(output).decode())
        self.assertNotIn("Traceback", b"".join(output).decode())
        self.ns.run("ip link del b1")
        self.assertEqual(self.ns.state(), before)
        self.assertFalse(os.path.exists(os.path.join(self.directory, "s")))
        done = await deferToThread(self.ndc, "interface", "list")
        self.assertEqual(done.returncode, 3)

    async def test_a_killed_daemon_and_undo(self) -> None:
        """SIGKILL of the real program; another one with ``--undo`` leaves the namespace as it was, and ends."""
        self.ns.run("ip link add b0 type bridge")
        self.ns.run("ip link set b0 up")
        before = await self.settled(self.ns)
        sockets = os.path.join(self.directory, "s")
        words = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
        words += ["-n", "--pidfile=", "anbox-netd", "--socket-dir", sockets, "--netns", self.ns.path]
        with subprocess.Popen(
            words,
            env=ENVIRONMENT,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as daemon:
            try:
                await self.answering(f"{sockets}/netd")
                for line in (
                    "interface setmtu b0 1400",
                    "interface setcfg b0 10.1.1.1 24",
                    "ipfwd enable x",
                    "nat enable b0 lo 0",
                    "network create 100",
                    "network interface add 100 b0",
                ):
                    replies = await self.tell(line)
                    self.assertTrue(replies[-1].startswith("200 "), replies)
            finally:
                daemon.kill()
        self.assertNotEqual(self.ns.state(), before)
        self.assertEqual(len(os.listdir(sockets)), 5)
        done = await deferToThread(
            subprocess.run,
            [*words, "--undo"],
            env=ENVIRONMENT,
            cwd=self.directory,
            capture_output=True,
            timeout=60,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(self.ns.state(), before)
        self.assertFalse(os.path.exists(sockets))

    async def monitor(self) -> None:
        command = [sys.executable, "-m", "anbox_tw.cli", "ndc", "monitor"]
        environment = {
            **ENVIRONMENT,
            "ANBOX_NETD_SOCKET_DIR": os.path.join(self.directory, "s"),
            "PYTHONUNBUFFERED": "1",
        }
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as monitor:
            assert monitor.stdout is not None
            os.set_blocking(monitor.stdout.fileno(), False)
            seen = b""
            made = 0

            def told() -> bool:
                nonlocal seen, made
                assert monitor.stdout is not None
                seen += monitor.stdout.read() or b""
                made += 1
                if made % 100 == 0:
                    # the program may not have connected yet: say it again
                    self.ns.run("ip link add b1 type bridge", check=False)
                    self.ns.run(f"ip link set b1 mtu {1300 + made // 100}")
                return b"600 Iface linkstate b1 down\n" in seen

            try:
                await self.until(told, "the monitor's line", timeout=30)
            finally:
                monitor.send_signal(signal.SIGINT)
            await deferToThread(monitor.wait, 20)

    async def test_ndc_wire_form(self) -> None:
        """What AOSP's ndc writes: a number, the words, quotes around one with spaces; and what comes back."""
        await self.start()

        def talk(line: bytes) -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(os.path.join(self.directory, "s", "netd"))
                client.sendall(line)
                data = b""
                while not data.endswith(b"\0") or data.rsplit(b"\0", 2)[-2][:1] == b"1":
                    data += client.recv(4096)
                return data

        self.assertEqual(
            await deferToThread(talk, b"0 interface list\0"), b"110 0 lo\x00200 0 Interface list completed\0"
        )
        self.assertEqual(
            await deferToThread(talk, b'5 resolver setnetdns 100 "a.org b.org" 8.8.8.8\0'),
            b"200 5 Resolver command succeeded\0",
        )
