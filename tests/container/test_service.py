"""The manager's methods over an in-memory link, with a backend that only pretends."""

from __future__ import annotations

import os
from typing import Any

import attrs
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides
from zope.interface.verify import verifyObject

from anbox_tw.container.authority import Authority, Caller
from anbox_tw.container.client import ContainerClient
from anbox_tw.container.journal import UndoContext
from anbox_tw.container.manager import ContainerManager, ManagerSettings, StartRequest
from anbox_tw.container.service import ManagerApi
from anbox_tw.container.spec import NetworkSpec
from anbox_tw.errors import ConfigError, ContainerError, ExitCode, NotRunning
from anbox_tw.interfaces import IContainer, IContainerBackend, IReachableContainer
from anbox_tw.network import Credentials
from anbox_tw.rpc import Channel, Dispatcher, RemoteError
from anbox_tw.testing.container import FakeBackend, FakeContainer
from anbox_tw.testing.rpc import RpcLink

OURS = Credentials(100, os.geteuid(), os.getegid())
ALICE = Credentials(200, 4001, 4001)
BOB = Credentials(300, 4002, 4002)


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.backend = FakeBackend("process")
        self.lxc = FakeBackend("lxc")
        self.data_path = os.path.abspath(self.mktemp())
        self.settings = ManagerSettings(
            data_path=self.data_path, run_path=f"{self.data_path}-run", backend="process"
        )
        self.make()

    def make(self, **more: Any) -> None:
        self.manager = ContainerManager(
            self.clock,
            self.settings,
            {"process": self.backend, "lxc": self.lxc},
            authority=Authority(uid=os.geteuid()),
            **more,
        )
        self.dispatcher = Dispatcher()
        self.api = ManagerApi(self.manager)
        self.api.register(self.dispatcher)

    def connect(self, credentials: Credentials | None = OURS) -> ContainerClient:
        client = Channel(self.clock, name="the manager")
        server = Channel(self.clock, dispatcher=self.dispatcher)
        link = RpcLink(client, server, credentials=credentials)
        made = ContainerClient(client)
        made.cut = link.cut  # type: ignore[attr-defined]
        return made

    def state(self, instance: str = "default") -> str:
        listed = {
            one["instance"]: one["state"] for one in self.successResultOf(self.connect().list_containers())
        }
        return str(listed.get(instance, "unknown"))

    def hold(self, phase: str) -> list[Deferred[None]]:
        return self.backend.held.setdefault(phase, [])

    def code(self, deferred: Deferred[Any]) -> str:
        return str(self.failureResultOf(deferred, RemoteError).value.code)

    def text(self, deferred: Deferred[Any]) -> str:
        return str(self.failureResultOf(deferred, RemoteError).value)


class StartTests(Base):
    def test_start_stop_and_start_again(self) -> None:
        client = self.connect()
        self.successResultOf(client.start_container())
        self.assertEqual(self.state(), "running")
        self.successResultOf(client.stop_container())
        self.assertEqual(self.state(), "stopped")
        self.successResultOf(client.start_container())
        self.assertEqual(
            [one.calls for one in self.backend.containers],
            [["prepare", "start", "stop"], ["prepare", "start"]],
        )

    def test_doubles_are_what_they_stand_for(self) -> None:
        self.successResultOf(self.connect().start_container())
        self.assertTrue(verifyObject(IContainerBackend, self.backend))
        self.assertTrue(verifyObject(IContainer, self.backend.containers[0]))

    def test_the_request_reaches_the_backend(self) -> None:
        made: list[FakeContainer] = []
        self.lxc.on_create = made.append
        self.successResultOf(
            self.connect().start_container(
                "work",
                bind_mounts=[("/run/x/qemu_pipe", "/dev/qemu_pipe")],
                devices=[("/dev/null", 0o666)],
                extra_properties=["ro.boot.fake_battery=1"],
                backend="lxc",
                rootfs="/srv/rootfs",
                data_path=f"{self.data_path}/elsewhere",
                privileged=True,
                use_rootfs_overlay=True,
                force_squashfuse=True,
                init=["/init", "second"],
                environment={"A": "b"},
                network=False,
            )
        )
        spec = made[0].spec
        self.assertEqual((spec.instance, spec.backend, spec.rootfs), ("work", "lxc", "/srv/rootfs"))
        self.assertEqual(spec.data_path, f"{self.data_path}/elsewhere")
        [mount] = spec.bind_mounts
        self.assertEqual((mount.source, mount.target), ("/run/x/qemu_pipe", "dev/qemu_pipe"))
        [device] = spec.devices
        self.assertEqual((device.path, device.permission), ("/dev/null", 0o666))
        self.assertEqual(spec.extra_properties, ("ro.boot.fake_battery=1",))
        self.assertEqual((spec.init, dict(spec.environment)), (("/init", "second"), {"A": "b"}))
        self.assertTrue(spec.privileged and spec.use_rootfs_overlay and spec.force_squashfuse)
        self.assertEqual((spec.owner_uid, spec.owner_gid), (OURS.uid, OURS.gid))
        self.assertEqual(spec.network, NetworkSpec(mode="none"))

    def test_instances_have_their_own_places(self) -> None:
        client = self.connect()
        for name in ("default", "work"):
            self.successResultOf(client.start_container(name))
        specs = [one.spec for one in self.backend.containers]
        self.assertEqual(
            [spec.data_path for spec in specs], [self.data_path, f"{self.data_path}/instances/work"]
        )
        self.assertEqual(len({spec.run_path for spec in specs}), 2)

    def test_the_address_is_the_default_instances_alone(self) -> None:
        self.settings = ManagerSettings(
            data_path=self.data_path,
            run_path="/run/x",
            backend="process",
            network=NetworkSpec(address="192.168.250.2/24", dns=("192.0.2.1",)),
        )
        self.make()
        for name in ("default", "work"):
            self.successResultOf(self.connect_kept().start_container(name))
        networks = [one.spec.network for one in self.backend.containers]
        self.assertEqual([one.address for one in networks], ["192.168.250.2/24", None])
        self.assertEqual([one.dns for one in networks], [("192.0.2.1",)] * 2)

    def connect_kept(self) -> ContainerClient:
        client = self.connect()
        self.addCleanup(client.close)
        return client

    def test_image_in_the_data_path_is_taken_where_nothing_is_named(self) -> None:
        os.makedirs(self.data_path)
        with open(f"{self.data_path}/android.img", "wb"):
            pass
        self.successResultOf(self.connect_kept().start_container())
        spec = self.backend.containers[0].spec
        self.assertEqual((spec.rootfs, spec.image), ("", f"{self.data_path}/android.img"))

    def test_second_start_of_an_instance_is_refused_with_the_originals_words(self) -> None:
        holding = self.hold("prepare")
        first, second = self.connect(), self.connect()
        starting = first.start_container()
        self.assertIn("Container is already running", self.text(second.start_container()))
        holding[0].callback(None)
        self.successResultOf(starting)
        self.assertEqual(self.code(second.start_container()), "ANBOX-C007")

    def test_failed_start_tells_cause_and_cure_and_leaves_a_state(self) -> None:
        self.backend.failures["start"] = ContainerError("no init", "give one", code="ANBOX-C013")
        client = self.connect()
        error = self.failureResultOf(client.start_container(), RemoteError).value
        self.assertEqual((error.code, error.cure), ("ANBOX-C013", "give one"))
        self.assertIn("no init", error.cause)
        info = self.successResultOf(client.container_info())
        self.assertEqual(info["state"], "failed")
        self.assertIn("no init", info["failure"])
        self.assertEqual(info["details"]["diagnosis"]["code"], "ANBOX-C013")
        self.assertEqual(self.backend.containers[0].calls, ["prepare", "start", "stop"])
        del self.backend.failures["start"]
        self.successResultOf(client.start_container())

    def test_bad_requests(self) -> None:
        client = self.connect()
        cases: list[tuple[str, dict[str, Any]]] = [
            ("cannot be the name of an instance", {"instance": "../etc"}),
            ("cannot be the name of an instance", {"instance": "a" * 33}),
            ("there is no backend", {"backend": "docker"}),
            ("'..'", {"bind_mounts": [("/a/../b", "/dev/x")]}),
            ("'..'", {"bind_mounts": [("/a", "../x")]}),
            ("not a property", {"extra_properties": ["ro.a=b\nro.c=d"]}),
            ("not in /dev", {"devices": [("/etc/passwd", 0o666)]}),
            ("not a character device", {"devices": [("/dev/shm", 0o666)]}),
            ("not a permission", {"devices": [("/dev/null", 0o7777)]}),
            ("environment variable", {"environment": {"A=B": "c"}}),
        ]
        for words, request in cases:
            error = self.failureResultOf(client.start_container(**request), RemoteError).value
            self.assertIn(words, str(error), request)
            self.assertEqual(error.exit_code, ExitCode.USAGE, request)
        self.assertEqual(self.successResultOf(client.list_containers()), [])
        self.assertEqual(self.backend.containers, [])

    def test_limit_of_instances_leaves_out_the_ended(self) -> None:
        self.patch(__import__("anbox_tw.container.manager", fromlist=["x"]), "MAX_INSTANCES", 2)
        client = self.connect()
        for name in ("a", "b"):
            self.successResultOf(client.start_container(name))
        self.assertIn("limit", self.text(client.start_container("c")))
        self.successResultOf(client.stop_container("a"))
        self.successResultOf(client.start_container("c"))
        self.assertEqual(self.state("a"), "unknown")


class LifetimeTests(Base):
    def test_container_lives_as_long_as_the_connection(self) -> None:
        client = self.connect()
        self.successResultOf(client.start_container())
        self.successResultOf(client.close())
        self.assertEqual(self.state(), "stopped")

    def test_detached_container_goes_on(self) -> None:
        client = self.connect()
        self.successResultOf(client.start_container(detached=True))
        self.successResultOf(client.close())
        self.assertEqual(self.state(), "running")
        self.successResultOf(self.connect().stop_container())

    def test_caller_that_dies_while_it_starts(self) -> None:
        for phase in ("prepare", "start"):
            self.hold(phase)
            client = self.connect()
            starting = client.start_container()
            self.assertNoResult(starting)
            self.successResultOf(client.close())
            self.failureResultOf(starting)
            self.assertEqual(self.state(), "stopped", phase)
            self.assertEqual(self.backend.containers[-1].calls[-1], "stop")
            del self.backend.held[phase]

    def test_other_connections_end_does_not_matter(self) -> None:
        owner, other = self.connect(), self.connect()
        self.successResultOf(owner.start_container())
        self.successResultOf(other.close())
        self.assertEqual(self.state(), "running")

    def test_connection_that_started_an_ended_container_ends_without_harm(self) -> None:
        first, second = self.connect(), self.connect()
        self.successResultOf(first.start_container())
        self.successResultOf(second.stop_container())
        self.successResultOf(second.start_container())
        self.successResultOf(first.close())
        self.assertEqual(self.state(), "running")

    def test_container_that_ends_by_itself(self) -> None:
        client = self.connect()
        events: list[dict[str, Any]] = []
        self.successResultOf(client.watch(events.append))
        self.successResultOf(client.start_container())
        self.backend.containers[0].end("init was killed by SIGKILL")
        self.assertEqual(self.state(), "failed")
        self.assertEqual((events[-1]["state"], events[-1]["code"]), ("failed", "ANBOX-C014"))
        self.assertIn("SIGKILL", events[-1]["cause"])
        self.assertIn(
            "Container is not running: the instance 'default' is failed", self.text(client.stop_container())
        )

    def test_forced_stop_gives_init_no_time(self) -> None:
        client = self.connect()
        for force in (False, True, False):
            self.successResultOf(client.start_container())
            self.successResultOf(client.stop_container(force=force))
        self.assertEqual([one.graces for one in self.backend.containers], [[10.0], [0.0], [10.0]])

    def test_stop_of_what_does_not_run(self) -> None:
        error = self.failureResultOf(self.connect().stop_container("work"), RemoteError).value
        self.assertIn("Container is not running", str(error))
        self.assertEqual(error.exit_code, ExitCode.NOT_RUNNING)

    def test_shut_down_ends_all_and_starts_no_more(self) -> None:
        client = self.connect()
        self.successResultOf(client.start_container("a", detached=True))
        self.successResultOf(client.start_container("b"))
        self.hold("prepare")
        starting = client.start_container("c")
        self.successResultOf(self.manager.shut_down())
        self.assertEqual([self.state(name) for name in "abc"], ["stopped"] * 3)
        self.failureResultOf(starting, RemoteError)
        self.assertIn("shutting down", self.text(client.start_container("d")))

    def test_shut_down_goes_on_past_a_container_that_cannot_be_ended(self) -> None:
        client = self.connect()
        for name in ("a", "b"):
            self.successResultOf(client.start_container(name))
        self.backend.failures["stop"] = ContainerError("stuck", code="ANBOX-C018")
        self.successResultOf(self.manager.shut_down())
        self.assertEqual([self.state(name) for name in "ab"], ["failed"] * 2)


class AuthorityTests(Base):
    """Callers who are not the manager's user; the test's own user stands for root."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(Authority, "needs_opening", lambda authority, caller: False)

    def test_only_owner_and_administrator_see_and_stop(self) -> None:
        alice, bob = self.connect(ALICE), self.connect(BOB)
        self.successResultOf(alice.start_container("hers", backend="lxc"))
        self.assertEqual(self.successResultOf(bob.list_containers()), [])
        self.failureResultOf(bob.container_info("hers"), RemoteError)
        error = self.failureResultOf(bob.stop_container("hers"), RemoteError).value
        self.assertEqual(error.exit_code, ExitCode.REFUSED)
        self.assertEqual(self.state("hers"), "running")
        [info] = self.successResultOf(alice.list_containers())
        self.assertEqual((info["owner_uid"], info["owner_gid"]), (ALICE.uid, ALICE.gid))
        self.successResultOf(self.connect(OURS).stop_container("hers"))
        self.assertEqual(self.state("hers"), "stopped")

    def test_sockets_inside_are_for_owner_and_administrator(self) -> None:
        class Gate:
            ready = True

        gate: Any = Gate()

        def reachable(container: Any) -> None:
            alsoProvides(container, IReachableContainer)
            container.gate = gate

        self.lxc.on_create = reachable
        self.manager.guest_sockets = "/run/guests"
        alice, bob = self.connect(ALICE), self.connect(BOB)
        self.successResultOf(alice.start_container("hers", backend="lxc"))
        info = self.successResultOf(alice.container_info("hers"))
        self.assertEqual(info["guest_sockets"], "/run/guests")
        for caller in (ALICE, OURS):
            self.assertIs(self.manager.guest_gate(Caller(caller.uid, caller.gid), "hers"), gate)
        with self.assertRaisesRegex(NotRunning, "no instance 'hers'"):
            self.manager.guest_gate(Caller(BOB.uid, BOB.gid), "hers")
        # without a helper nobody is told of a way
        gate.ready = False
        self.assertEqual(self.successResultOf(alice.container_info("hers")).get("guest_sockets", ""), "")
        self.lxc.on_create = lambda container: None
        self.successResultOf(bob.start_container("his", backend="lxc"))
        with self.assertRaisesRegex(NotRunning, "cannot be opened"):
            self.manager.guest_gate(Caller(BOB.uid, BOB.gid), "his")

    def test_owner_may_stop_from_another_connection(self) -> None:
        self.successResultOf(self.connect(ALICE).start_container("hers", backend="lxc"))
        self.successResultOf(self.connect(ALICE).stop_container("hers"))

    def test_events_go_to_those_who_may_see(self) -> None:
        alice, bob, root = self.connect(ALICE), self.connect(BOB), self.connect()
        seen: dict[str, list[str]] = {"alice": [], "bob": [], "root": []}
        for name, client in (("alice", alice), ("bob", bob), ("root", root)):
            states = seen[name]
            self.successResultOf(client.watch(lambda event, states=states: states.append(event["state"])))  # type: ignore[misc]
        self.successResultOf(alice.start_container("hers", backend="lxc"))
        self.assertEqual(seen["bob"], [])
        self.assertEqual(seen["alice"], seen["root"])
        self.assertEqual(seen["alice"][-1], "running")

    def test_taken_instance_does_not_tell_a_stranger_more_than_its_owner(self) -> None:
        self.successResultOf(self.connect(ALICE).start_container("hers", backend="lxc"))
        text = self.text(self.connect(BOB).start_container("hers", backend="lxc"))
        self.assertIn("started by uid 4001", text)

    def test_what_is_an_administrators(self) -> None:
        alice = self.connect(ALICE)
        cases: list[dict[str, Any]] = [
            {"backend": "process"},
            {"backend": "lxc", "rootfs": "/root"},
            {"backend": "lxc", "image": "/root/image"},
            {"backend": "lxc", "data_path": "/root"},
            {"backend": "lxc", "privileged": True},
            {"backend": "lxc", "devices": [("/dev/mem", 0o666)]},
            {"backend": "lxc", "devices": [("/dev/dri/x/renderD1", 0o666)]},
        ]
        for request in cases:
            error = self.failureResultOf(alice.start_container(**request), RemoteError).value
            self.assertEqual(error.exit_code, ExitCode.REFUSED, request)
        self.assertEqual(self.lxc.containers, [])
        self.successResultOf(
            alice.start_container(backend="lxc", rootfs="host", devices=[("/dev/null", 0o666)])
        )

    def test_device_that_is_not_there_is_left_to_the_backend(self) -> None:
        self.successResultOf(self.connect().start_container(devices=[("/dev/ashmem-of-old", 0o666)]))

    def test_caller_without_credentials_may_nothing(self) -> None:
        client = self.connect(None)
        for call in (
            client.start_container(),
            client.stop_container(),
            client.list_containers(),
            client.watch(print),
        ):
            self.assertEqual(self.failureResultOf(call, RemoteError).value.exit_code, ExitCode.REFUSED)

    def test_named_administrator(self) -> None:
        authority = Authority(uid=0, admin_uids=[ALICE.uid])
        self.assertTrue(authority.is_admin(Caller(ALICE.uid, 0)))
        self.assertFalse(authority.is_admin(Caller(BOB.uid, 0)))

    def test_pattern_that_is_none(self) -> None:
        for pattern in ("null", "/etc/*", "/dev/../etc/*"):
            self.assertRaises(ConfigError, Authority, devices=[pattern])

    def test_data_of_another_user(self) -> None:
        if os.geteuid() != 0:
            authority = Authority(uid=os.geteuid())
            authority.claim_data(Caller(ALICE.uid, 0), "/nonexistent", "x")  # the file system guards it
            return
        alice = self.connect(ALICE)
        self.successResultOf(alice.start_container("hers", backend="lxc"))
        self.successResultOf(alice.stop_container("hers"))
        error = self.failureResultOf(
            self.connect(BOB).start_container("hers", backend="lxc"), RemoteError
        ).value
        self.assertEqual(error.exit_code, ExitCode.REFUSED)
        self.assertIn("belongs to uid 4001", str(error))
        self.assertEqual(self.state("hers"), "failed")
        self.successResultOf(self.connect(ALICE).start_container("hers", backend="lxc"))


class WatchTests(Base):
    def test_phases_of_one_instance(self) -> None:
        client, watching = self.connect(), self.connect()
        events: list[dict[str, Any]] = []
        self.assertEqual(self.successResultOf(watching.watch(events.append, "a")), [])
        for name in ("b", "a"):
            self.successResultOf(client.start_container(name))
        self.successResultOf(client.stop_container("a"))
        self.assertEqual({event["instance"] for event in events}, {"a"})
        steps = [(event["state"], event["phase"]) for event in events if not event["detail"]]
        for step in (
            ("preparing", "prepare"),
            ("starting", "start"),
            ("running", "run"),
            ("stopping", "stop"),
        ):
            self.assertIn(step, steps)
        self.assertEqual(steps[-1], ("stopped", ""))
        self.assertTrue(all(event["timestamp"] > 0 for event in events))

    def test_watch_tells_what_is_and_ends_with_the_connection(self) -> None:
        client, watching = self.connect(), self.connect()
        self.successResultOf(client.start_container("a"))
        [info] = self.successResultOf(watching.watch(lambda event: None))
        self.assertEqual((info["instance"], info["state"], info["pid"]), ("a", "running", 4711))
        self.assertEqual(len(self.manager._watchers), 1)
        self.successResultOf(watching.watch(lambda event: None))
        self.assertEqual(len(self.manager._watchers), 1)
        self.successResultOf(watching.close())
        self.assertEqual(len(self.manager._watchers), 0)

    def test_a_second_watch_keeps_nothing_of_the_first(self) -> None:
        watching = self.connect()
        self.successResultOf(watching.watch(lambda event: None))
        [peer] = self.api._watches
        kept = len(peer._on_disconnect)
        for _ in range(3):
            self.successResultOf(watching.watch(lambda event: None))
        self.assertEqual(len(peer._on_disconnect), kept)
        self.successResultOf(watching.close())
        self.assertEqual((len(self.manager._watchers), len(self.api._watches)), (0, 0))

    def test_failing_and_refused_watchers(self) -> None:
        client = self.connect()
        self.assertIn("cannot be the name", self.text(client.watch(print, "no/name")))
        self.assertEqual(client._callbacks, [])
        self.successResultOf(client.watch(lambda event: 1 / 0))
        self.successResultOf(client.start_container())
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))
        client._event(b"\xff\xff")  # logged, no harm

    def test_info(self) -> None:
        client = self.connect()
        self.assertIn("no instance", self.text(client.container_info()))
        self.successResultOf(client.start_container("a"))
        info = self.successResultOf(client.container_info("a"))
        self.assertEqual(
            (info["backend"], info["address"], info["detached"]), ("process", "192.0.2.2", False)
        )
        self.assertEqual(info["details"]["isolation"], "none at all")
        about = self.successResultOf(client.manager_info())
        self.assertEqual((about["backends"], about["pid"]), (["lxc", "process"], os.getpid()))

    def test_losing_the_manager(self) -> None:
        client = self.connect()
        lost = client.when_lost()
        self.hold("prepare")
        starting = client.start_container()
        client.cut()  # type: ignore[attr-defined]
        self.assertIn("the manager", self.successResultOf(lost))
        self.failureResultOf(starting)


class RecoveryTests(Base):
    def leave(self, instance: str) -> str:
        """What a killed manager leaves: an entry of a journal, and what it stands for."""
        place = self.settings.data_of(instance)
        left = f"{place}/left-{instance}"
        journal = self.manager._journal(f"{place}/state/undo.journal")
        journal.open()
        os.makedirs(left)
        journal.record("directory", path=left)
        os.close(journal._descriptor)  # as when the process dies
        return left

    def test_what_was_left_is_undone_before_the_first_start(self) -> None:
        left = [self.leave("default"), self.leave("work")]
        self.successResultOf(self.manager.recover())
        self.assertEqual([os.path.exists(path) for path in left], [False, False])
        self.successResultOf(self.manager.recover())
        self.successResultOf(self.connect().start_container())

    def test_start_waits_for_it(self) -> None:
        gate: Deferred[None] = Deferred()

        class Slow(ContainerManager):
            async def _recover(self) -> None:
                await gate

        self.patch(__import__("tests.container.test_service", fromlist=["x"]), "ContainerManager", Slow)
        self.make()
        recovered = self.manager.recover()
        client, dying = self.connect(), self.connect()
        starting = client.start_container()
        unwanted = dying.start_container("other")
        self.assertEqual(self.state(), "preparing")
        self.successResultOf(dying.close())
        self.assertNoResult(starting)
        gate.callback(None)
        self.successResultOf(recovered)
        self.successResultOf(starting)
        self.failureResultOf(unwanted)
        self.assertEqual([one.spec.instance for one in self.backend.containers], ["default"])
        self.assertEqual(self.state("other"), "failed")

    def test_a_manager_that_was_shut_down_starts_again(self) -> None:
        self.successResultOf(self.manager.recover())
        self.successResultOf(self.manager.shut_down())
        self.assertIn("shutting down", self.text(self.connect().start_container()))
        self.successResultOf(self.manager.recover())
        self.successResultOf(self.connect().start_container())

    def test_journal_of_a_live_manager_is_left_alone(self) -> None:
        self.successResultOf(self.connect().start_container())
        other = ContainerManager(self.clock, self.settings, {"process": FakeBackend()})
        self.successResultOf(other.recover())
        refused = ensureDeferred(other.start(Caller(os.geteuid(), 0), StartRequest()))
        self.assertEqual(self.failureResultOf(refused).value.code, "ANBOX-C007")

    def test_what_cannot_be_undone_keeps_nobody_from_serving(self) -> None:
        self.leave("default")
        with open(f"{self.data_path}/left-default/file", "wb"):
            pass

        async def fail(args: object, context: UndoContext) -> None:
            raise OSError("no")

        kind = self.manager._kinds.get("directory")
        assert kind is not None
        self.manager._kinds._kinds["directory"] = attrs.evolve(kind, undo=fail)
        self.successResultOf(self.manager.recover())
        self.flushLoggedErrors()
        self.successResultOf(self.connect().start_container("work"))


class ManagerTests(Base):
    def test_default_backend_must_be_there(self) -> None:
        self.assertRaises(ConfigError, ContainerManager, self.clock, self.settings, {"lxc": self.lxc})
