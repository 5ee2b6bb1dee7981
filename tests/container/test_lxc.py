"""Containers by real LXC, in their own namespaces, with nothing left of them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from typing import Any

import attrs
from twisted.internet.defer import CancelledError
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.ipconfig import read_ipconfig
from anbox_tw.container.lxc import LxcBackend
from anbox_tw.container.machine import State
from anbox_tw.container.spec import BindMount, Device, NetworkSpec
from anbox_tw.interfaces import IContainer, IContainerBackend
from tests.container.doubles import a_journal, a_spec
from tests.container.lxc_support import LxcCase, default_reactor, look_at, read, run, soon, until


class InterfaceTests(SynchronousTestCase):
    def test_backend_and_container_provide_the_seams(self) -> None:
        backend = LxcBackend(default_reactor)
        self.assertTrue(verifyObject(IContainerBackend, backend))
        directory = os.path.abspath(self.mktemp())
        journal = a_journal(default_reactor, f"{directory}/journal")
        self.addCleanup(journal.close)
        container = backend.create(a_spec(directory), journal)
        self.assertTrue(verifyObject(IContainer, container))
        self.assertEqual(container.info()["notes"], [])


class LoopbackTests(LxcCase):
    """What listens on the host's 127.0.0.1, from inside."""

    async def connect(self, host: str, port: int, network: NetworkSpec) -> tuple[Any, bool]:
        """Run a container whose init connects there; the container, and whether it could."""
        socket, pipe = await self.session(f"s{len(self.machines)}")
        spec = self.spec(
            socket,
            instance=f"c{len(self.machines)}",
            network=network,
            environment={"HOST": host, "HOST_PORT": str(port)},
        )
        machine = self.machine(spec)
        line = pipe.line()
        # an init that cannot connect ends, perhaps before its start is told
        machine.observe(lambda event: line.cancel() if event.state is State.FAILED else None)
        starting = machine.start().addErrback(lambda failure: failure.trap(DiagnosedError))
        try:
            json.loads(await line)
        except CancelledError:
            return machine, False
        finally:
            await starting
        return machine, True

    async def test_the_emulators_alias_where_it_is_asked_for(self) -> None:
        port = default_reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        number = port.getHost().port
        wanted = NetworkSpec(host_loopback=True)
        machine, could = await self.connect("10.0.2.2", number, wanted)
        self.assertTrue(could)
        rules = run("nft", "list", "table", "ip", self.bridge)
        self.assertIn("ip daddr 127.0.0.0/8 drop", rules)
        self.assertEqual(read(f"/proc/sys/net/ipv4/conf/{self.bridge}/route_localnet"), "1\n")
        # the bridge's own address is no way to it
        _, could = await self.connect(machine.info()["gateway"], number, wanted)
        self.assertFalse(could)

    async def test_a_resolver_on_the_hosts_loopback_is_reached_through_the_bridge(self) -> None:
        path = f"{self.directory}/resolv.conf"
        with open(path, "w") as file:
            file.write("nameserver 127.0.0.1\n")
        self.network.resolv_confs = (path,)
        port = default_reactor.listenTCP(53, Factory.forProtocol(Protocol), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        machine, could = await self.connect("192.168.250.1", 53, NetworkSpec())
        self.assertTrue(could)
        self.assertEqual(machine.info()["dns"], [machine.info()["gateway"]])


class HostRootfsTests(LxcCase):
    async def report(self, pipe: Any) -> dict[str, Any]:
        found = json.loads(await pipe.line())
        assert isinstance(found, dict)
        return found

    async def test_a_container_lives_in_namespaces_of_its_own_and_leaves_nothing(self) -> None:
        socket, pipe = await self.session()
        port = default_reactor.listenTCP(0, Factory.forProtocol(Protocol))
        self.addCleanup(port.stopListening)
        spec = self.spec(
            socket,
            devices=(Device("/dev/fuse"),),
            extra_properties=("ro.boot.fake_battery=1",),
            environment={"HOST": "192.168.250.1", "HOST_PORT": str(port.getHost().port), "X": "a 'b' c"},
        )
        os.makedirs(spec.run_path)
        before = look_at([spec], self.bridge)
        machine = self.machine(spec)
        await machine.start()
        info = machine.info()
        inside = await self.report(pipe)
        self.assertEqual((inside["pid"], inside["uid"], inside["hostname"]), (1, 0, "anbox"))
        self.assertEqual(inside["uid_map"], ["0", "100000", "100000"])
        self.assertEqual(inside["interfaces"], ["eth0", "lo"])
        self.assertNotEqual(inside["netns"], os.readlink("/proc/self/ns/net"))
        self.assertNotEqual(inside["pidns"], os.readlink("/proc/self/ns/pid"))
        self.assertEqual(inside["processes"], 1)
        self.assertEqual(inside["local"], info["address"])
        self.assertEqual((inside["data"], inside["sdcard"], inside["cache"]), ("ok", "ok", "ok"))
        self.assertEqual(inside["usr"], "PermissionError")
        self.assertEqual(inside["prop"], "# Properties added by Anbox\nro.boot.fake_battery=1\n")
        self.assertIn(f"nameserver {info['dns'][0]}", inside["resolv"])
        self.assertEqual(
            inside["anbox_tw"],
            os.path.join(
                os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
                "anbox_tw",
                "__init__.py",
            ),
        )
        self.assertTrue(inside["twisted"])
        self.assertEqual(inside["run"], [])
        self.assertEqual(inside["mem"], "PermissionError")
        self.assertEqual(inside["shadow"], "Permi")
        self.assertEqual(inside["environ"]["X"], "a 'b' c")
        self.assertIn("qemu_pipe", inside["dev"])
        if os.path.exists("/dev/fuse"):
            self.assertIn("fuse", inside["dev"])
        # what it wrote to is kept in the instance's data directory, by its own root
        with open(f"{spec.data_dir}/local/tmp/inside") as file:
            self.assertEqual(file.read(), "from inside")
            self.assertEqual(os.fstat(file.fileno()).st_uid, 100000)
        self.assertTrue(os.path.exists(f"{spec.data_dir}/media/0/inside"))
        with open(f"{spec.data_dir}/misc/ethernet/ipconfig.txt", "rb") as file:
            (ipconfig,) = read_ipconfig(file.read())
        self.assertEqual(ipconfig.address, f"{info['address']}/24")
        self.assertEqual((ipconfig.gateway, ipconfig.dns), (info["gateway"], tuple(info["dns"])))
        self.assertEqual(run("ps", "-o", "args=", "-p", str(info["pid"])).split()[-1], self.init)
        rules = run("nft", "list", "table", "ip", self.bridge)
        self.assertIn("masquerade", rules)
        await machine.stop()
        self.assertEqual(await pipe.line(), b"terminated")
        self.assertIn("console line", read(spec.console_log))
        self.assertEqual(look_at([spec], self.bridge), before)

    async def test_a_user_of_the_host_is_androids_system(self) -> None:
        socket, pipe = await self.session(mode=0o600)
        os.chown(socket, 12345, 12345)
        # The host rootfs has a /tmp of its own, and a caller who is not root brings its files itself.
        mounts = (BindMount(socket, "dev/qemu_pipe"), BindMount(self.init, "tmp/init.py", read_only=True))
        init = (sys.executable, "/tmp/init.py")
        machine = self.machine(
            self.spec(None, owner_uid=12345, owner_gid=12345, bind_mounts=mounts, init=init)
        )
        await machine.start()
        inside = await self.report(pipe)
        self.assertEqual(inside["uid_map"][:6], ["0", "100000", "1000", "1000", "12345", "1"])
        self.assertEqual(stat.S_IMODE(os.stat(socket).st_mode), 0o600)

    async def test_privileged(self) -> None:
        socket, pipe = await self.session()
        machine = self.machine(self.spec(socket, privileged=True))
        await machine.start()
        inside = await self.report(pipe)
        self.assertEqual(inside["uid_map"], ["0", "0", "4294967295"])
        self.assertEqual(inside["usr"], "ok")
        self.assertFalse(os.path.exists("/usr/anbox-tw-test"), "the overlay takes what is written")
        self.assertEqual(inside["mem"], "PermissionError", "the devices controller guards the host's memory")
        self.assertIn("privileged", machine.info()["isolation"])

    async def test_two_instances_share_the_bridge_and_nothing_else(self) -> None:
        specs = []
        for name in ("one", "two"):
            socket, pipe = await self.session(name)
            specs.append((self.spec(socket, instance=name), pipe))
        for spec, _ in specs:
            os.makedirs(spec.run_path)
        before = look_at([spec for spec, _ in specs], self.bridge)
        machines = [self.machine(spec) for spec, _ in specs]
        starts = [machine.start() for machine in machines]
        for started in starts:
            await started
        self.assertEqual(
            sorted(machine.info()["address"] for machine in machines), ["192.168.250.2", "192.168.250.3"]
        )
        for _, pipe in specs:
            self.assertEqual((await self.report(pipe))["pid"], 1)
        await machines[0].stop()
        self.assertIn(self.bridge, run("ip", "-o", "link"))
        self.assertEqual(machines[1].state, State.RUNNING)
        await machines[1].stop()
        self.assertEqual(look_at([spec for spec, _ in specs], self.bridge), before)

    async def test_without_a_network_there_is_loopback_only(self) -> None:
        socket, pipe = await self.session()
        machine = self.machine(self.spec(socket, network=NetworkSpec("none")))
        await machine.start()
        self.assertEqual((await self.report(pipe))["interfaces"], ["lo"])
        self.assertNotIn(self.bridge, run("ip", "-o", "link"))
        self.assertNotIn("address", machine.info())

    async def test_addresses_that_were_asked_for(self) -> None:
        socket, pipe = await self.session()
        network = NetworkSpec("auto", "10.99.98.7/28", "10.99.98.1", ("9.9.9.9", "1.1.1.1"))
        machine = self.machine(self.spec(socket, network=network))
        await machine.start()
        self.assertIn("nameserver 1.1.1.1", (await self.report(pipe))["resolv"])
        self.assertEqual((machine.info()["address"], machine.info()["gateway"]), ("10.99.98.7", "10.99.98.1"))

    async def test_an_init_that_ends_is_told_with_its_console(self) -> None:
        spec = self.spec(None, init=("/bin/sh", "-c", "echo famous last words; exit 3"))
        machine = self.machine(spec)
        try:
            await machine.start()
        except DiagnosedError:
            pass
        await until(machine, State.FAILED)
        failed = machine.failure
        assert failed is not None
        self.assertIn(failed.code, ("ANBOX-C012", "ANBOX-C014"))
        self.assertIn("famous last words", "\n".join(failed.log_tail))

    async def test_a_container_that_is_killed_is_told(self) -> None:
        socket, pipe = await self.session()
        machine = self.machine(self.spec(socket))
        await machine.start()
        await self.report(pipe)
        exited = self.container(machine).when_exited()
        os.kill(machine.info()["pid"], 9)
        self.assertTrue(await exited)
        await until(machine, State.FAILED)
        assert machine.failure is not None
        self.assertEqual(machine.failure.code, "ANBOX-C014")

    async def test_an_init_that_cannot_be_executed(self) -> None:
        script = f"{self.directory}/broken"
        with open(script, "w") as file:
            file.write("#!/no/such/interpreter\n")
        os.chmod(script, 0o755)
        for init in (("/no/such/init",), (script,)):
            spec = self.spec(None, init=init)
            machine = self.machine(spec)
            with self.assertRaises(DiagnosedError) as caught:
                await machine.start()
            self.assertEqual(caught.exception.code, "ANBOX-C013", caught.exception)
            self.assertEqual(machine.state, State.FAILED)
            self.assertEqual(machine.journal.pending, [])
            machine.journal.close()

    async def test_an_init_that_ignores_the_signal_is_not_waited_for(self) -> None:
        machine = self.machine(self.spec(None, init=("/bin/sh", "-c", "sleep 100; true")))
        await machine.start()
        begun = default_reactor.seconds()
        await machine.stop()
        self.assertLess(default_reactor.seconds() - begun, 5)

    async def test_an_init_that_takes_the_signal_and_stays_is_killed_in_the_end(self) -> None:
        machine = self.machine(
            self.spec(None, init=("/bin/sh", "-c", "trap : TERM; while :; do sleep 1; done"))
        )
        await machine.start()
        container = self.container(machine)
        await container.stop(0.3)
        self.assertIn("ended", container._process.exited if container._process else "")

    async def test_bad_requests_have_their_cause(self) -> None:
        os.symlink("/etc", f"{self.directory}/link")
        missing = f"{self.directory}/missing"
        for more, code in (
            ({"bind_mounts": (BindMount(missing, "dev/x"),)}, "ANBOX-C008"),
            ({"bind_mounts": (BindMount("/etc/hosts", "bin/x"),)}, "ANBOX-C008"),
            ({"devices": (Device("/dev/kmsg"),)}, "ANBOX-C009"),
            ({"rootfs": missing}, "ANBOX-C002"),
            ({"rootfs": self.init}, "ANBOX-C002"),
            ({"rootfs": self.directory}, "ANBOX-C002"),
            ({"rootfs": "", "image": missing}, "ANBOX-C002"),
            ({"rootfs": "", "image": self.init}, "ANBOX-C003"),
            ({"network": NetworkSpec("auto", "10.1.1.1/24", "10.1.2.1")}, "ANBOX-C016"),
        ):
            machine = self.machine(self.spec(None, **more))
            with self.assertRaises(DiagnosedError) as caught:
                await machine.start()
            self.assertEqual(caught.exception.code, code, caught.exception)
            self.assertTrue(caught.exception.cure)
            self.assertEqual(machine.journal.pending, [])
            machine.journal.close()

    async def test_a_data_path_that_another_user_controls_is_refused(self) -> None:
        spec = self.spec(None)
        machine = self.machine(spec)
        os.chown(spec.data_path, 12345, 12345)
        with self.assertRaises(DiagnosedError) as caught:
            await machine.start()
        self.assertEqual(caught.exception.code, "ANBOX-C004")

    async def test_links_of_the_guest_are_not_followed(self) -> None:
        spec = self.spec(None, init=("/bin/sleep", "100"))
        os.makedirs(f"{spec.data_dir}/misc")
        victim = f"{self.directory}/victim"
        os.mkdir(victim)
        os.symlink(victim, f"{spec.data_dir}/misc/ethernet")
        machine = self.machine(spec)
        with self.assertRaises(DiagnosedError) as caught:
            await machine.start()
        self.assertEqual(caught.exception.code, "ANBOX-C004")
        self.assertEqual(os.listdir(victim), [])
        os.unlink(f"{spec.data_dir}/misc/ethernet")
        os.mkdir(f"{spec.data_dir}/misc/ethernet")
        os.symlink("/etc/passwd", f"{spec.data_dir}/misc/ethernet/ipconfig.txt")
        before = read("/etc/passwd")
        await machine.start()
        self.assertEqual(read("/etc/passwd"), before)
        self.assertFalse(os.path.islink(f"{spec.data_dir}/misc/ethernet/ipconfig.txt"))

    async def test_bindtab_of_the_administrator(self) -> None:
        socket, pipe = await self.session()
        spec = self.spec(socket)
        os.makedirs(spec.data_path)
        with open(f"{spec.data_path}/bindtab", "w") as file:
            file.write(f"# a comment\nnot a path\n{self.init} dev/from-bindtab none bind,create=file 0 0\n")
        os.chmod(f"{spec.data_path}/bindtab", 0o644)
        machine = self.machine(spec)
        await machine.start()
        self.assertIn("from-bindtab", (await self.report(pipe))["dev"])
        await machine.stop()
        self.assertEqual(await pipe.line(), b"terminated")
        os.chmod(f"{spec.data_path}/bindtab", 0o666)
        await machine.start()
        self.assertNotIn("from-bindtab", (await self.report(pipe))["dev"])
        self.assertIn("bindtab is left out", " ".join(machine.info()["notes"]))

    async def test_a_stop_in_the_middle_of_the_start(self) -> None:
        spec = self.spec(None, init=("/bin/sleep", "100"))
        os.makedirs(spec.run_path)
        before = look_at([spec], self.bridge)
        for phase in ("prepare", "start"):
            machine = self.machine(spec)

            def stop(event: Any, machine: Any = machine, phase: str = phase) -> None:
                if event.phase == phase and not event.detail:
                    default_reactor.callLater(0.03, machine.stop)

            machine.observe(stop)
            try:
                await machine.start()
            except DiagnosedError as error:
                self.assertEqual(error.code, "ANBOX-C022")
            await machine.stop()
            self.assertEqual(look_at([spec], self.bridge), before)
            machine.journal.close()

    async def test_the_host_is_probed_without_a_change(self) -> None:
        probes = {probe.name: probe for probe in await self.backend.probe()}
        for name in ("root", "capabilities", "LXC", "ip", "nft", "overlayfs"):
            self.assertTrue(probes[name].ok, probes[name])


class OtherRootfsTests(LxcCase):
    async def report(self, pipe: Any) -> dict[str, Any]:
        found = json.loads(await pipe.line())
        assert isinstance(found, dict)
        return found

    async def test_an_image_of_android(self) -> None:
        socket, pipe = await self.session()
        tree = self.static_init("anbox-init.sh")
        with open(f"{tree}/default.prop", "w") as file:
            file.write("ro.secure=1\n")
        spec = self.spec(
            socket,
            rootfs="",
            image=self.squashfs(tree),
            init=(),
            extra_properties=("ro.boot.fake_battery=1",),
        )
        os.makedirs(spec.run_path)
        before = look_at([spec], self.bridge)
        machine = self.machine(spec)
        await machine.start()
        inside = await self.report(pipe)
        self.assertEqual((inside["pid"], inside["name"]), (1, "/anbox-init.sh"))
        self.assertEqual((inside["data"], inside["root"]), (True, False))
        self.assertEqual(inside["prop"], "# Properties added by Anbox|ro.boot.fake_battery=1|ro.secure=1|")
        config = read(f"{spec.data_path}/containers/default/config")
        self.assertIn("lxc.environment = PATH=/system/bin:/system/sbin:/system/xbin\n", config)
        await machine.stop()
        self.assertEqual(look_at([spec], self.bridge), before)

    async def test_an_image_through_squashfuse_with_an_overlay_of_the_user(self) -> None:
        socket, pipe = await self.session()
        image = self.squashfs(self.static_init("init"))
        spec = self.spec(
            socket, rootfs="", image=image, init=(), force_squashfuse=True, use_rootfs_overlay=True
        )
        os.makedirs(f"{spec.data_path}/rootfs-overlay")
        open(f"{spec.data_path}/rootfs-overlay/extra", "w").close()
        os.makedirs(spec.run_path)
        before = look_at([spec], self.bridge)
        machine = self.machine(spec)
        await machine.start()
        inside = await self.report(pipe)
        self.assertEqual((inside["name"], inside["extra"], inside["root"]), ("/init", True, False))
        await machine.stop()
        self.assertEqual(look_at([spec], self.bridge), before)

    async def test_an_image_without_our_mount_points_gets_them(self) -> None:
        socket, pipe = await self.session()
        tree = self.static_init("init")
        for name in ("data", "cache", "sdcard"):
            os.rmdir(f"{tree}/{name}")
        machine = self.machine(self.spec(socket, rootfs="", image=self.squashfs(tree), init=()))
        await machine.start()
        inside = await self.report(pipe)
        self.assertEqual((inside["data"], inside["root"]), (True, False))

    async def test_a_directory_stays_as_it_was(self) -> None:
        socket, pipe = await self.session()
        tree = self.static_init("sbin-init")
        os.mkdir(f"{tree}/sbin")
        os.rename(f"{tree}/sbin-init", f"{tree}/sbin/init")
        before = sorted(os.walk(tree))
        machine = self.machine(
            self.spec(socket, rootfs=tree, init=(), privileged=True, extra_properties=("a=b",))
        )
        await machine.start()
        inside = await self.report(pipe)
        self.assertEqual((inside["name"], inside["root"], inside["data"]), ("/sbin/init", True, True))
        self.assertEqual(inside["prop"], "# Properties added by Anbox|a=b|")
        await machine.stop()
        self.assertEqual(sorted(os.walk(tree)), before)

    async def test_a_rootfs_without_init_says_so(self) -> None:
        tree = self.static_init()
        machine = self.machine(self.spec(None, rootfs=tree, init=()))
        with self.assertRaises(DiagnosedError) as caught:
            await machine.start()
        self.assertEqual(caught.exception.code, "ANBOX-C013")
        self.assertIn("--init", caught.exception.cure)


class LimitedHostTests(LxcCase):
    async def test_a_run_directory_that_cannot_hold_an_overlay_is_helped_with_memory(self) -> None:
        socket, pipe = await self.session()
        spec = self.spec(socket)
        lower = f"{self.directory}/lower"
        os.makedirs(f"{lower}/run")
        os.makedirs(f"{self.directory}/upper")
        os.makedirs(f"{self.directory}/work")
        os.makedirs(spec.run_path)
        options = f"lowerdir={lower},upperdir={self.directory}/upper,workdir={self.directory}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", spec.run_path], check=True)
        self.addCleanup(subprocess.run, ["umount", spec.run_path], check=True)
        machine = self.machine(spec)
        await machine.start()
        self.assertEqual(json.loads(await pipe.line())["pid"], 1)
        self.assertIn("kept in memory", " ".join(machine.info()["notes"]))
        await machine.stop()
        self.assertEqual(os.listdir(spec.run_path), ["run"])

    async def test_a_closed_run_directory_is_replaced(self) -> None:
        socket, pipe = await self.session()
        closed = f"{self.directory}/closed"
        os.mkdir(closed, 0o700)
        spec = self.spec(socket, instance="closed")
        object.__setattr__(spec, "run_path", f"{closed}/run")
        machine = self.machine(spec)
        await machine.start()
        self.assertEqual(json.loads(await pipe.line())["pid"], 1)
        await machine.stop()
        self.assertEqual(os.listdir(closed), ["data"])
        self.assertNotIn("containers", os.listdir(spec.data_path))
        self.assertFalse(os.path.exists("/run/anbox-tw"))

    async def test_without_lxc_the_probe_says_what_to_install(self) -> None:
        machine = self.machine(self.spec(None))
        facts = self.backend.look()
        self.backend.look = lambda: attrs.evolve(facts, lxc_start=None)
        with self.assertRaises(DiagnosedError) as caught:
            await machine.start()
        self.assertEqual(caught.exception.code, "ANBOX-C006")
        self.assertIn("apt install lxc", caught.exception.cure)


class SecrecyTests(LxcCase):
    async def test_a_caller_cannot_name_files_of_root_in_its_init(self) -> None:
        secret = f"{self.directory}/closed"
        os.mkdir(secret, 0o700)
        with open(f"{secret}/file", "w") as file:
            file.write("world-readable, in a directory of root's own")
        os.chmod(f"{secret}/file", 0o644)
        init = ("/bin/sh", "-c", 'cat "$0"; sleep 100', f"{secret}/file")
        for owner, seen in ((12345, False), (0, True)):
            spec = self.spec(None, init=init, owner_uid=owner, owner_gid=owner, instance=f"of{owner}")
            machine = self.machine(spec)
            await machine.start()
            self.assertTrue(await soon(lambda spec=spec: bool(read(spec.console_log))))  # type: ignore[misc]
            self.assertEqual("root's own" in read(spec.console_log), seen)
            await machine.stop()

    async def test_other_users_do_not_get_to_what_a_guest_has_written(self) -> None:
        socket, pipe = await self.session()
        spec = self.spec(socket, privileged=True)
        machine = self.machine(spec)
        await machine.start()
        await pipe.line()
        self.assertEqual(stat.S_IMODE(os.stat(spec.data_path).st_mode), 0o700)
        staging = os.stat(f"{spec.run_path}/lxc")
        self.assertEqual((stat.S_IMODE(staging.st_mode), staging.st_gid), (0o710, 0))
        await machine.stop()
        unprivileged = self.spec(None, init=("/bin/sleep", "100"), instance="two", owner_uid=12345)
        machine = self.machine(unprivileged)
        await machine.start()
        # The ids of all mapped containers are the same, so a program that is set-uid to this one's root would be
        # root of everybody's: its own owner gets to it no more than others.
        for inside in ("data", "cache"):
            reached = subprocess.run(
                ["setpriv", "--reuid=12345", "--clear-groups", "stat", f"{unprivileged.data_path}/{inside}"],
                capture_output=True,
                check=False,
            )
            self.assertIn(b"Permission denied", reached.stderr)
        # The container's root passes through all the same, also when the directory is there already.
        self.assertIn("containers", os.listdir(unprivileged.data_path))
        again = self.backend.create(unprivileged, machine.journal)
        self.assertEqual(again.lxcpath, f"{unprivileged.data_path}/containers")
        staging = os.stat(f"{unprivileged.run_path}/lxc")
        self.assertEqual((stat.S_IMODE(staging.st_mode), staging.st_gid), (0o710, 100000))


class OutsideTests(LxcCase):
    async def test_a_container_reaches_beyond_the_host_under_the_hosts_address(self) -> None:
        """The world is another network namespace behind a veth pair."""
        world = subprocess.Popen(["unshare", "-n", "sleep", "60"])
        self.addCleanup(world.wait)
        self.addCleanup(world.kill)
        own = os.readlink("/proc/self/ns/net")
        self.assertTrue(await soon(lambda: os.readlink(f"/proc/{world.pid}/ns/net") != own))
        peer = ["nsenter", f"--net=/proc/{world.pid}/ns/net"]
        for command in (
            [
                "ip",
                "link",
                "add",
                "anboxw0",
                "type",
                "veth",
                "peer",
                "name",
                "anboxw1",
                "netns",
                str(world.pid),
            ],
            ["ip", "address", "add", "10.99.94.1/24", "dev", "anboxw0"],
            ["ip", "link", "set", "anboxw0", "up"],
            [*peer, "ip", "address", "add", "10.99.94.2/24", "dev", "anboxw1"],
            [*peer, "ip", "link", "set", "anboxw1", "up"],
        ):
            subprocess.run(command, check=True)
        self.addCleanup(run, "ip", "link", "delete", "anboxw0")
        server = subprocess.Popen(
            [
                *(*peer, sys.executable, "-c"),
                "import socket; s = socket.create_server(('10.99.94.2', 7)); print('up', flush=True);"
                "c, a = s.accept(); print(a[0], flush=True)",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        self.assertEqual(server.stdout.readline(), "up\n")
        socket, pipe = await self.session()
        spec = self.spec(socket, environment={"HOST": "10.99.94.2", "HOST_PORT": "7"})
        machine = self.machine(spec)
        await machine.start()
        self.assertEqual(json.loads(await pipe.line())["local"], machine.info()["address"])
        self.assertEqual(server.stdout.readline(), "10.99.94.1\n")

    async def test_the_hosts_network_can_be_shared(self) -> None:
        socket, pipe = await self.session()
        for privileged in (True, False):
            spec = self.spec(
                socket, network=NetworkSpec("host"), privileged=privileged, instance=f"shared{privileged:d}"
            )
            machine = self.machine(spec)
            await machine.start()
            inside = json.loads(await pipe.line())
            self.assertEqual(inside["netns"], os.readlink("/proc/self/ns/net"))
            await machine.stop()
            self.assertEqual(await pipe.line(), b"terminated")
