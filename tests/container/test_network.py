"""The bridge, its table and its leases, with the real kernel."""

from __future__ import annotations

import errno
import fcntl
import glob
import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import DeferredList, ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.container.commands import Commands
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.journal import Journal, UndoContext
from anbox_tw.container.network import ContainerNetwork, host_name_servers
from anbox_tw.container.network_plan import DEFAULT_SUBNET, FALLBACK_DNS, overlapping, routes_of
from anbox_tw.container.spec import NetworkSpec
from anbox_tw.container.undo import default_kinds
from anbox_tw.errors import HostLacks
from anbox_tw.netd import netlink
from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.kernel import Kernel
from tests.container.lxc_support import default_reactor, read, run
from tests.support import REPOSITORY, need_root, need_tool

BRIDGE = "anboxt1"

HOLDER = """
import sys
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from anbox_tw.container.commands import Commands
from anbox_tw.container.journal import Journal, UndoContext
from anbox_tw.container.network import NETWORK_KIND, ContainerNetwork
from anbox_tw.container.spec import NetworkSpec
from anbox_tw.container.undo import default_kinds

kinds = default_kinds()
kinds.register(NETWORK_KIND)
journal = Journal(sys.argv[2], UndoContext(reactor, Commands(reactor)), kinds)
journal.open()

async def main():
    network = ContainerNetwork(bridge=sys.argv[3], run_directory=sys.argv[1])
    lease = await network.acquire("other", NetworkSpec(), journal)
    print(lease.address.ip, flush=True)

ensureDeferred(main())
reactor.run()
"""


class NameServerTests(SynchronousTestCase):
    def test_the_stub_of_systemd_resolved_is_looked_through(self) -> None:
        first, second, missing = (os.path.abspath(self.mktemp()) for _ in range(3))
        with open(first, "w") as file:
            file.write("nameserver 127.0.0.53\n")
        with open(second, "w") as file:
            file.write("nameserver 10.1.1.1\n")
        self.assertEqual(host_name_servers((missing, first, second)), ("10.1.1.1",))
        self.assertEqual(host_name_servers((first,)), FALLBACK_DNS)


class NetworkCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        need_root()
        for tool in ("ip", "nft"):
            need_tool(tool)
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.leases = f"{self.directory}/run/network"
        self.network = ContainerNetwork(bridge=BRIDGE, run_directory=self.leases)
        self.before = self.look()

    def look(self) -> Any:
        return (
            sorted(line.split(":")[1] for line in run("ip", "-o", "link").splitlines()),
            run("nft", "list", "ruleset"),
            read("/proc/sys/net/ipv4/ip_forward"),
            glob.glob(f"{self.directory}/run/**", recursive=True),
        )

    def journal(self, name: str) -> Journal:
        from anbox_tw.container.network import NETWORK_KIND

        kinds = default_kinds()
        kinds.register(NETWORK_KIND)
        context = UndoContext(default_reactor, Commands(default_reactor))
        journal = Journal(f"{self.directory}/{name}.journal", context, kinds)
        journal.open()
        self.addCleanup(journal.close)
        self.addCleanup(journal.undo_all)
        return journal

    def routes(self) -> list[ipaddress.IPv4Network]:
        return routes_of(json.loads(run("ip", "-j", "-4", "route", "show", "table", "all") or "[]"), BRIDGE)


class BridgeTests(NetworkCase):
    async def test_the_first_makes_it_and_the_last_takes_it_down(self) -> None:
        one, two = self.journal("one"), self.journal("two")
        first = await self.network.acquire("one", NetworkSpec(), one)
        second = await self.network.acquire("two", NetworkSpec(), two)
        self.assertEqual(int(second.address.ip), int(first.address.ip) + 1)
        self.assertEqual((first.bridge, second.gateway), (BRIDGE, first.gateway))
        self.assertIn(str(first.gateway), run("ip", "-4", "address", "show", "dev", BRIDGE))
        self.assertEqual(read("/proc/sys/net/ipv4/ip_forward"), "1\n")
        await one.undo_all()
        self.assertIn(BRIDGE, run("ip", "-o", "link"))
        again = await self.network.acquire("one", NetworkSpec(), one)
        self.assertEqual(again.address, first.address)
        await two.undo_all()
        await one.undo_all()
        self.assertEqual(self.look(), self.before)

    async def test_the_table_is_what_was_promised(self) -> None:
        journal = self.journal("one")
        lease = await self.network.acquire("one", NetworkSpec(), journal)
        text = run("nft", "list", "table", "ip", BRIDGE)
        subnet = str(lease.address.network)
        for rule in (
            f"ip saddr {subnet} ip daddr != {subnet} masquerade",
            f'iifname "{BRIDGE}" accept',
            f'oifname "{BRIDGE}" accept',
            f'iifname "{BRIDGE}" udp dport {{ 53, 67 }} accept',
            f'iifname "{BRIDGE}" tcp dport {{ 53, 67 }} accept',
            'comment "managed by anbox-tw"',
        ):
            self.assertIn(rule, text)

    async def test_a_table_that_was_damaged_is_made_anew(self) -> None:
        await self.network.acquire("one", NetworkSpec(), self.journal("one"))
        wanted = run("nft", "list", "table", "ip", BRIDGE)
        subprocess.run(["nft", "flush", "table", "ip", BRIDGE], check=True)
        subprocess.run(["nft", "add", "chain", "ip", BRIDGE, "foreign"], check=True)
        await self.network.acquire("two", NetworkSpec(), self.journal("two"))
        self.assertEqual(run("nft", "list", "table", "ip", BRIDGE), wanted)

    async def test_many_at_once_have_addresses_of_their_own(self) -> None:
        taking = [
            ensureDeferred(self.network.acquire(f"c{n}", NetworkSpec(), self.journal(f"c{n}")))
            for n in range(8)
        ]
        results = await DeferredList(taking, fireOnOneErrback=True)
        self.assertEqual(len({str(lease.address) for _, lease in results}), 8)

    async def test_a_route_of_the_host_moves_the_subnet(self) -> None:
        subprocess.run(["ip", "link", "add", "anboxtc", "type", "bridge"], check=True)
        self.addCleanup(subprocess.run, ["ip", "link", "delete", "anboxtc"], check=True)
        subprocess.run(["ip", "address", "add", "192.168.250.77/24", "dev", "anboxtc"], check=True)
        subprocess.run(["ip", "link", "set", "anboxtc", "up"], check=True)
        lease = await self.network.acquire("one", NetworkSpec(), self.journal("one"))
        self.assertFalse(lease.address.network.overlaps(DEFAULT_SUBNET))
        self.assertIsNone(overlapping(lease.address.network, self.routes()))
        self.assertIn("not free on this host", " ".join(lease.notes))
        await self.journal("one-more").undo_all()

    async def test_a_subnet_that_was_asked_for_and_is_not_free(self) -> None:
        subprocess.run(["ip", "link", "add", "anboxtc", "type", "bridge"], check=True)
        self.addCleanup(subprocess.run, ["ip", "link", "delete", "anboxtc"], check=True)
        subprocess.run(["ip", "address", "add", "10.99.97.1/24", "dev", "anboxtc"], check=True)
        subprocess.run(["ip", "link", "set", "anboxtc", "up"], check=True)
        journal = self.journal("one")
        with self.assertRaises(DiagnosedError) as caught:
            await self.network.acquire("one", NetworkSpec("auto", "10.99.97.9/25"), journal)
        self.assertEqual(caught.exception.code, "ANBOX-C016")
        await journal.undo_all()
        self.assertEqual(glob.glob(f"{self.directory}/run/**"), [])

    async def test_an_address_out_of_the_running_subnet(self) -> None:
        await self.network.acquire("one", NetworkSpec(), self.journal("one"))
        for address in ("10.99.96.9/24", None):
            journal = self.journal(f"two{address is None}")
            gateway = None if address else "10.99.96.1"
            with self.assertRaises(DiagnosedError) as caught:
                await self.network.acquire("two", NetworkSpec("auto", address, gateway), journal)
            self.assertEqual(caught.exception.code, "ANBOX-C016")

    async def test_a_bridge_of_somebody_else_is_used_and_stays(self) -> None:
        subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
        self.addCleanup(subprocess.run, ["ip", "link", "delete", BRIDGE], check=True)
        journal = self.journal("one")
        with self.assertRaises(DiagnosedError) as caught:
            await self.network.acquire("one", NetworkSpec(), journal)
        self.assertIn("no IPv4 address", caught.exception.cause)
        subprocess.run(["ip", "address", "add", "10.99.95.1/24", "dev", BRIDGE], check=True)
        lease = await self.network.acquire("one", NetworkSpec(), journal)
        self.assertEqual(str(lease.address), "10.99.95.2/24")
        await journal.undo_all()
        self.assertIn(BRIDGE, run("ip", "-o", "link"))
        self.assertNotIn(BRIDGE, run("nft", "list", "ruleset"))

    async def test_an_interface_of_the_name_that_is_no_bridge(self) -> None:
        subprocess.run(["ip", "link", "add", BRIDGE, "type", "veth", "peer", "name", "anboxtp"], check=True)
        self.addCleanup(subprocess.run, ["ip", "link", "delete", BRIDGE], check=True)
        with self.assertRaises(DiagnosedError) as caught:
            await self.network.acquire("one", NetworkSpec(), self.journal("one"))
        self.assertIn("not a bridge", caught.exception.cause)

    async def test_a_firewall_that_drops_is_told(self) -> None:
        rules = "add table ip anboxtf; add chain ip anboxtf forward { type filter hook forward priority 5; policy drop; }"
        subprocess.run(["nft", rules], check=True)
        self.addCleanup(subprocess.run, ["nft", "delete table ip anboxtf"], check=True)
        lease = await self.network.acquire("one", NetworkSpec(), self.journal("one"))
        self.assertIn("ip anboxtf forward", " ".join(lease.notes))

    async def test_ip_forward_is_put_back(self) -> None:
        old = read("/proc/sys/net/ipv4/ip_forward")

        def put(value: str) -> None:
            with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
                file.write(value)

        self.addCleanup(put, old)
        for value in ("0\n", "1\n"):
            put(value)
            journal = self.journal(f"forward{value[0]}")
            await self.network.acquire("one", NetworkSpec(), journal)
            self.assertEqual(read("/proc/sys/net/ipv4/ip_forward"), "1\n")
            await journal.undo_all()
            self.assertEqual(read("/proc/sys/net/ipv4/ip_forward"), value)


class SickHostTests(NetworkCase):
    @staticmethod
    def refusing(number: int) -> Callable[..., Awaitable[None]]:
        async def refuse(*args: Any, **options: Any) -> None:
            raise KernelRefused(number, "a change")

        return refuse

    def with_tools(self, **scripts: str) -> Journal:
        """A journal whose tools are replaced by scripts, where one is named."""
        directory = f"{self.directory}/tools"
        os.makedirs(directory, exist_ok=True)
        for name, script in scripts.items():
            with open(f"{directory}/{name}", "w") as file:
                file.write(f"#!/bin/sh\n{script}\n")
            os.chmod(f"{directory}/{name}", 0o755)
        journal = self.journal("sick")
        environment = {"PATH": f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin"}
        commands = Commands(default_reactor, environment)
        journal.context = UndoContext(default_reactor, commands)
        return journal

    async def test_without_nft_host_and_containers_still_have_each_other(self) -> None:
        journal = self.with_tools(nft="echo no such module >&2; exit 1")
        lease = await self.network.acquire("one", NetworkSpec(), journal)
        self.assertIn("no such module", " ".join(lease.notes))
        self.assertIn(BRIDGE, run("ip", "-o", "link"))
        await journal.undo_all()
        self.assertEqual(self.look(), self.before)

    async def test_what_the_tools_print_may_be_garbage(self) -> None:
        for printed in ("garbage", "5", '{"nftables": 7}', '[7, {"ifname": 9}]'):
            journal = self.with_tools(
                nft=f"cat > /dev/null; echo '{printed}'",
                ip=f'case "$*" in *-j*) echo \'{printed}\';; *) exec /usr/sbin/ip "$@";; esac',
            )
            lease = await self.network.acquire("one", NetworkSpec(), journal)
            self.assertEqual(str(lease.address), "192.168.250.2/24")
            await journal.undo_all()
            self.assertNotIn(BRIDGE, run("ip", "-o", "link"))
            journal.close()

    async def test_a_bridge_that_cannot_be_made(self) -> None:
        journal = self.journal("sick")
        # what the kernel does refuse: an address for the bridge that is half made
        self.patch(Kernel, "add_address", self.refusing(errno.ENOBUFS))
        with self.assertRaises(DiagnosedError) as caught:
            await self.network.acquire("one", NetworkSpec(), journal)
        self.assertEqual(caught.exception.code, "ANBOX-C016")
        self.assertIn("No buffer space", caught.exception.cause)
        await journal.undo_all()
        self.assertEqual(self.look(), self.before)

    async def test_what_cannot_be_taken_down_is_told(self) -> None:
        journal = self.with_tools()
        await self.network.acquire("one", NetworkSpec(), journal)
        path = f"{self.directory}/tools/nft"
        with open(path, "w") as file:
            file.write("#!/bin/sh\necho busy >&2; exit 1\n")
        os.chmod(path, 0o755)
        with self.assertRaises(DiagnosedError) as caught:
            await journal.undo_all()
        self.assertIn("busy", caught.exception.cause)
        os.unlink(path)
        patched = self.patch(Kernel, "delete_link", self.refusing(errno.EBUSY))
        with self.assertRaises(DiagnosedError) as caught:
            await journal.undo_all()
        self.assertIn("busy", caught.exception.cause)
        patched.restore()
        await journal.undo_all()
        self.assertEqual(self.look(), self.before)

    async def test_without_pyroute2(self) -> None:
        def missing() -> None:
            raise HostLacks("netd needs pyroute2, which cannot be imported", "pip install pyroute2")

        self.patch(netlink, "pyroute2_parts", missing)
        journal = self.journal("one")
        with self.assertRaises(DiagnosedError) as caught:
            await self.network.acquire("one", NetworkSpec(), journal)
        self.assertEqual(caught.exception.code, "ANBOX-C016")
        self.assertIn("pip install", caught.exception.cure)
        await journal.undo_all()
        self.assertEqual(self.look(), self.before)

    async def test_a_run_directory_that_cannot_be_written(self) -> None:
        with open(f"{self.directory}/file", "w"):
            pass
        network = ContainerNetwork(bridge=BRIDGE, run_directory=f"{self.directory}/file/network")
        with self.assertRaises(DiagnosedError) as caught:
            await network.acquire("one", NetworkSpec(), self.journal("one"))
        self.assertEqual(caught.exception.code, "ANBOX-C016")


class CrashTests(NetworkCase):
    def other_manager(self) -> tuple[subprocess.Popen[str], str]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        other = subprocess.Popen(
            [sys.executable, "-c", HOLDER, self.leases, f"{self.directory}/other.journal", BRIDGE],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.addCleanup(other.wait)
        self.addCleanup(other.kill)
        assert other.stdout is not None
        self.addCleanup(other.stdout.close)
        return other, other.stdout.readline().strip()

    async def test_the_lease_of_a_killed_manager_is_nobodys(self) -> None:
        other, address = self.other_manager()
        one = self.journal("one")
        lease = await self.network.acquire("one", NetworkSpec(), one)
        self.assertNotEqual(str(lease.address.ip), address)
        other.send_signal(signal.SIGKILL)
        other.wait()
        two = await self.network.acquire("two", NetworkSpec(), self.journal("two"))
        self.assertEqual(str(two.address.ip), address)

    async def test_the_lease_that_an_orphan_of_a_killed_manager_holds_is_nobodys(self) -> None:
        """A child between fork and exec has what its parent had, for a moment."""
        one = self.journal("one")
        await self.network.acquire("one", NetworkSpec(), one)
        (lock,) = glob.glob(f"{self.leases}/*/lock")
        dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE)
        path = f"{os.path.dirname(lock)}/leases/dead"
        with open(path, "w") as file:
            json.dump({"address": "192.168.250.77", "pid": int(dead.stdout)}, file)
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
            orphan = subprocess.Popen(["sleep", "0.3"], pass_fds=[file.fileno()])
        self.addCleanup(orphan.wait)
        await one.undo_all()
        self.assertEqual(self.look(), self.before)

    async def test_the_last_living_one_takes_down_what_a_killed_one_made(self) -> None:
        other, _ = self.other_manager()
        one = self.journal("one")
        await self.network.acquire("one", NetworkSpec(), one)
        other.send_signal(signal.SIGKILL)
        other.wait()
        await one.undo_all()
        self.assertEqual(self.look(), self.before)

    async def test_what_a_killed_manager_left_is_undone_by_its_journal(self) -> None:
        other, _ = self.other_manager()
        other.send_signal(signal.SIGKILL)
        other.wait()
        self.assertIn(BRIDGE, run("ip", "-o", "link"))
        await self.journal("other").undo_all()
        self.assertEqual(self.look(), self.before)

    async def test_a_half_made_bridge_is_made_anew(self) -> None:
        other, _ = self.other_manager()
        other.send_signal(signal.SIGKILL)
        other.wait()
        # as it is between two steps of `ip -batch`
        subprocess.run(["ip", "address", "flush", "dev", BRIDGE], check=True)
        one = self.journal("one")
        lease = await self.network.acquire("one", NetworkSpec(), one)
        self.assertIn(str(lease.gateway), run("ip", "-4", "address", "show", "dev", BRIDGE))

    async def test_damaged_state_is_survived(self) -> None:
        one = self.journal("one")
        await self.network.acquire("one", NetworkSpec(), one)
        (state,) = glob.glob(f"{self.leases}/*/state.json")
        journals = [one]
        for number, text in enumerate(("", "[]", "{", "\0" * 10)):
            with open(state, "w") as file:
                file.write(text)
            journals.append(self.journal(f"damaged{number}"))
            await self.network.acquire(f"damaged{number}", NetworkSpec(), journals[-1])
        for journal in journals:
            await journal.undo_all()
        self.assertEqual(self.look(), self.before)

    async def test_one_container_is_on_the_bridge_once(self) -> None:
        await self.network.acquire("one", NetworkSpec(), self.journal("one"))
        with self.assertRaises(DiagnosedError) as caught:
            await self.network.acquire("one", NetworkSpec(), self.journal("two"))
        self.assertEqual(caught.exception.code, "ANBOX-C007")

    async def test_a_manager_that_keeps_the_lock_is_not_waited_for_for_ever(self) -> None:
        from anbox_tw.container import network

        self.patch(network, "LOCK_TIMEOUT_S", 0.1)
        one = self.journal("one")
        await self.network.acquire("one", NetworkSpec(), one)
        (lock,) = glob.glob(f"{self.leases}/*/lock")
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with self.assertRaises(DiagnosedError) as caught:
                await self.network.acquire("two", NetworkSpec(), self.journal("two"))
            self.assertIn("another manager", caught.exception.cause)


class KilledAtEachStepTests(TestCase):
    timeout = 120

    async def test_the_successor_leaves_the_namespace_as_it_was(self) -> None:
        need_root()
        for tool in ("ip", "nft", "unshare"):
            need_tool(tool)
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        # an interface that forwards while the host as a whole does not: that, too, is as it was
        script = (
            "ip link set lo up && ip link add other type bridge && echo 0 > /proc/sys/net/ipv4/ip_forward"
            ' && echo 1 > /proc/sys/net/ipv4/conf/other/forwarding && exec "$@"'
        )
        words = ["unshare", "-n", "sh", "-c", script, "sh"]
        words += [sys.executable, "-m", "tests.container.network_victim", directory]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = await deferToThread(
            lambda: subprocess.run(
                words, capture_output=True, text=True, env=environment, check=False, timeout=110
            )
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        for each in found:
            where = (each["where"], each["number"])
            self.assertEqual(each["status"][1:], [0, 0], (where, done.stderr))
            self.assertEqual(each["clean"], each["before"], where)
            self.assertEqual(each["after"], each["before"], where)
            self.assertEqual(each["left"], [], where)
        # they were killed where something was half made, and the last of each kind was not killed
        killed = [each for each in found if each["status"][0] == -signal.SIGKILL]
        self.assertEqual([each["status"][0] for each in found if each not in killed], [0, 0])
        self.assertGreater(len(killed), 12)
        for part in ("links", "addresses", "rules", "forwarding"):
            self.assertGreater(sum(each["dead"][part] != each["before"][part] for each in killed), 0, part)
