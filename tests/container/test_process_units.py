"""The process backend's parts without a container: plans, data tree, and what the launcher may say."""

from __future__ import annotations

import errno
import json
import os
import signal
from typing import Any

from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.container import datatree, process
from anbox_tw.container.datatree import ensure_data_tree
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.idmap import BASE_ID, ID_COUNT
from anbox_tw.container.process import KILL_WAIT_S, MAX_EVENT_BYTES, ProcessBackend, ProcessContainer
from anbox_tw.container.process_plan import PythonFacts, RootEntry, list_root, make_plan, trial_plan
from anbox_tw.container.spec import BindMount, ContainerSpec, Device, NetworkSpec
from anbox_tw.container.undo import TOKEN_VARIABLE
from tests.container.doubles import a_journal, a_spec

PYTHON = PythonFacts(
    executable="/home/me/venv/bin/python",
    prefixes=("/home/me/venv", "/usr"),
    packages=("/home/me/venv/lib/python3.11/site-packages", "/opt/more/site-packages"),
    ours="/home/me/checkout/anbox_tw",
    home="/home/me",
)
ROOT = [RootEntry("bin", "usr/bin"), RootEntry("etc"), RootEntry("home"), RootEntry("proc"), RootEntry("usr")]


def plan_of(spec: ContainerSpec | None = None, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "python": PYTHON,
        "root_entries": ROOT,
        "uid": 1000,
        "gid": 1001,
        "token": "t",
        "isolation": "auto",
        "log_limit": 1,
        **more,
    }
    plan = make_plan(spec or a_spec("/d"), **options)
    json.dumps(plan)
    return plan


class PlanTests(SynchronousTestCase):
    def test_the_hosts_root_shows_programs_and_this_python_only(self) -> None:
        plan = plan_of()
        self.assertEqual(
            [bind["target"] for bind in plan["binds"]],
            ["etc", "usr", "home/me/venv", "opt/more/site-packages", "home/me/checkout/anbox_tw"],
        )
        self.assertFalse(any(bind.get("writable") for bind in plan["binds"]))
        self.assertEqual(plan["links"], [("bin", "usr/bin")])
        self.assertEqual(
            plan["environment"]["PYTHONPATH"],
            "/home/me/checkout:/home/me/venv/lib/python3.11/site-packages:/opt/more/site-packages",
        )
        self.assertEqual(plan["argv"][:3], ["/home/me/venv/bin/python", "-m", "anbox_tw.guest"])
        self.assertEqual([bind["target"] for bind in plan["data_binds"]], ["data", "sdcard", "cache"])

    def test_a_home_is_not_shown_because_it_is_a_prefix(self) -> None:
        home = PythonFacts("/home/me/bin/python", ("/home/me",), (), "/home/me/lib/anbox_tw", "/home/me")
        self.assertEqual(
            home.directories(), ["/home/me/bin", "/home/me/lib", "/home/me/lib64", "/home/me/pyvenv.cfg"]
        )

    def test_this_python(self) -> None:
        facts = PythonFacts.here()
        self.assertTrue(os.path.isdir(facts.ours))
        self.assertNotIn("/", facts.prefixes)

    def test_a_directory_as_the_rootfs(self) -> None:
        spec = a_spec(
            "/d", rootfs="/srv/root", bind_mounts=(BindMount("/s", "mnt/s"),), init=("/sbin/x", "y")
        )
        plan = plan_of(
            spec,
            root_entries=[RootEntry("lib", "usr/lib"), RootEntry("usr"), RootEntry("mnt"), RootEntry("data")],
        )
        self.assertEqual([bind["target"] for bind in plan["binds"]], ["run/anbox-tw/python/anbox_tw"])
        self.assertEqual(
            [(bind["source"], bind["target"]) for bind in plan["caller_binds"]],
            [("/srv/root/usr", "usr"), ("/srv/root/mnt", "mnt"), ("/s", "mnt/s")],
        )
        self.assertNotIn("mnt", [path for path, _ in plan["directories"]])
        self.assertEqual(plan["argv"], ["/sbin/x", "y"])
        self.assertEqual(plan["environment"]["PYTHONPATH"], "/run/anbox-tw/python")

    def test_names_at_the_top(self) -> None:
        directory = os.path.abspath(self.mktemp())
        os.makedirs(f"{directory}/b")
        os.symlink("b", f"{directory}/a")
        self.assertEqual(list_root(directory), [RootEntry("a", "b"), RootEntry("b")])
        self.assertEqual(list_root(directory, ["b"]), [RootEntry("b")])

    def test_id_maps(self) -> None:
        single = [("0 1000 1\n", "0 1001 1\n")]
        self.assertEqual(plan_of()["id_maps"], single)
        rest = f"1 {BASE_ID + 1} {ID_COUNT - 1}\n"
        self.assertEqual(
            plan_of(as_root=True)["id_maps"], [("0 1000 1\n" + rest, "0 1001 1\n" + rest), *single]
        )
        # An id cannot be mapped twice.
        self.assertEqual(len(plan_of(as_root=True, uid=BASE_ID + 5)["id_maps"]), 1)
        self.assertEqual(len(plan_of(as_root=True, gid=BASE_ID + 5)["id_maps"]), 1)

    def test_networks(self) -> None:
        slirp = "/usr/bin/slirp4netns"
        plan = plan_of(slirp=slirp)
        self.assertEqual(plan["slirp"][0], slirp)
        self.assertEqual(
            plan["files"], [("run/anbox-tw/resolv.conf", "nameserver 10.0.2.3\n", "etc/resolv.conf")]
        )
        own = a_spec("/d", network=NetworkSpec(dns=("9.9.9.9",)))
        plan = plan_of(own, slirp=slirp, resolv_conf="/run/systemd/resolve/stub-resolv.conf")
        self.assertEqual(
            plan["files"], [("run/systemd/resolve/stub-resolv.conf", "nameserver 9.9.9.9\n", "")]
        )
        shared = a_spec("/d", network=NetworkSpec(mode="host"))
        plan = plan_of(shared, slirp=slirp, resolv_conf="/run/resolv.conf")
        self.assertEqual((plan["slirp"], plan["own_network"], plan["files"]), (None, False, []))
        self.assertEqual(plan["binds"][-1]["source"], "/run/resolv.conf")
        self.assertIsNone(plan_of(a_spec("/d", network=NetworkSpec(mode="none")), slirp=slirp)["slirp"])

    def test_the_environment_is_the_callers_but_for_the_token(self) -> None:
        plan = plan_of(a_spec("/d", environment={"PATH": "/x", TOKEN_VARIABLE: "forged"}))
        self.assertEqual(plan["environment"]["PATH"], "/x")
        self.assertEqual(plan["environment"][TOKEN_VARIABLE], "t")
        self.assertEqual(next(iter(plan["environment"])), TOKEN_VARIABLE)

    def test_devices_and_properties(self) -> None:
        plan = plan_of(a_spec("/d", devices=(Device("/dev/fuse"),), extra_properties=("a=b",)))
        self.assertEqual([bind["target"] for bind in plan["devices"]], ["dev/fuse"])
        self.assertEqual(plan["files"], [("default.prop", "a=b\n", "")])

    def test_without_namespaces(self) -> None:
        spec = a_spec("/d", bind_mounts=(BindMount("/s", "dev/input"), BindMount("/r", "mnt/r", True)))
        plain = plan_of(spec)["plain"]
        self.assertEqual(plain["directories"], [("dev", 0o755), ("tmp", 0o1777)])
        self.assertIn(("dev/input", "/s"), plain["links"])
        self.assertIn("/s", plain["writable"])
        self.assertNotIn("/r", plain["writable"])
        self.assertIn("/d/run/container-root/dev", plain["argv"])

    def test_a_trial_has_nothing_of_an_instance(self) -> None:
        plan = trial_plan(PYTHON, ROOT, 1000, 1001)
        self.assertEqual(plan["data_binds"], [])
        self.assertEqual(plan["log"], "/dev/null")


class DataTreeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.spec = a_spec(os.path.abspath(self.mktemp()))
        self.chowned: list[tuple[int, int]] = []

    def test_it_is_made_with_androids_modes_whatever_the_umask(self) -> None:
        self.addCleanup(os.umask, os.umask(0o077))
        ensure_data_tree(self.spec, os.geteuid(), os.getegid())
        ensure_data_tree(self.spec, os.geteuid(), os.getegid())
        for name, mode in (*datatree.DATA_TREE, ("logs", 0o750), ("state", 0o700)):
            self.assertEqual(os.stat(f"{self.spec.data_path}/{name}").st_mode & 0o7777, mode, name)

    def test_roots_own_is_handed_over_and_others_is_left(self) -> None:
        os.makedirs(self.spec.data_dir)
        self.patch(os, "geteuid", lambda: 0)
        self.patch(os, "fchown", lambda descriptor, uid, gid: self.chowned.append((uid, gid)))
        ensure_data_tree(self.spec, BASE_ID, 0)
        self.assertEqual(set(self.chowned), {(BASE_ID, 0)})

    def test_what_cannot_be_made_is_told(self) -> None:
        for number, code in ((errno.ENOSPC, "ANBOX-C023"), (errno.EROFS, "ANBOX-C004")):

            def refuse(*arguments: Any, number: int = number, **more: Any) -> None:
                raise OSError(number, os.strerror(number))

            self.patch(os, "mkdir", refuse)
            error = self.assertRaises(DiagnosedError, ensure_data_tree, self.spec, 0, 0)
            self.assertEqual(error.code, code)

    def test_a_file_in_the_way(self) -> None:
        os.makedirs(self.spec.data_path)
        with open(self.spec.data_dir, "w"):
            pass
        error = self.assertRaises(DiagnosedError, ensure_data_tree, self.spec, os.geteuid(), os.getegid())
        self.assertIn("not a directory", error.diagnosis.why)


class FakeTransport:
    pid = 4242

    def __init__(self) -> None:
        self.orders = b""
        self.signals: list[str] = []
        self.gone = False

    def write(self, data: bytes) -> None:
        self.orders += data

    def signalProcess(self, name: str) -> None:
        if self.gone:
            raise ProcessExitedAlready
        self.signals.append(name)

    def loseConnection(self) -> None:
        pass


class FakeReactor(Clock):
    """Spawns launchers that say what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.error: OSError | None = None
        self.transport = FakeTransport()
        self.readers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def spawnProcess(self, protocol: Any, *arguments: Any, **more: Any) -> FakeTransport:
        if self.error is not None:
            raise self.error
        self.protocol = protocol
        protocol.makeConnection(self.transport)
        return self.transport

    def say(self, **event: Any) -> None:
        self.protocol.childDataReceived(1, json.dumps(event).encode() + b"\n")

    def end(self, reason: Any = None) -> None:
        failure = Failure(reason or ProcessDone(0))
        self.protocol.processExited(failure)
        self.protocol.processEnded(failure)


STARTED: dict[str, Any] = {
    "event": "started",
    "isolation": "plain",
    "pid": 7,
    "namespaces": [],
    "refused": {"all": "no"},
    "notes": ["noted"],
    "address": None,
}


class LauncherTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = os.path.abspath(self.mktemp())
        self.reactor = FakeReactor()
        self.journal = a_journal(self.reactor, f"{self.directory}/journal")
        self.addCleanup(self.journal.close)

    def container(self, **more: Any) -> ProcessContainer:
        more = {"owner_uid": os.geteuid(), "owner_gid": os.getegid(), **more}
        container = ProcessBackend(self.reactor).create(a_spec(self.directory, **more), self.journal)
        self.successResultOf(container.prepare())
        return container

    def test_a_life(self) -> None:
        container = self.container()
        started = container.start()
        plan, _, orders = self.reactor.transport.orders.partition(b"\n")
        self.assertEqual((json.loads(plan)["isolation"], orders), ("auto", b""))
        self.assertEqual(self.journal.pending[-1].args["pid"], 4242)
        for cut in json.dumps(STARTED).encode() + b"\n":
            self.reactor.protocol.childDataReceived(1, bytes([cut]))
        self.successResultOf(started)
        stopped, exited = container.stop(3), container.when_exited()
        self.assertTrue(self.reactor.transport.orders.endswith(b"T"))
        self.reactor.advance(3)
        self.assertTrue(self.reactor.transport.orders.endswith(b"TK"))
        self.reactor.say(event="exited", signal=int(signal.SIGKILL), killed=True)
        self.assertNoResult(stopped)
        self.reactor.end()
        self.successResultOf(stopped)
        self.assertEqual(self.successResultOf(exited), "init was killed by SIGKILL on request")
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_launcher_that_does_not_obey_is_killed_and_then_given_up(self) -> None:
        container = self.container()
        container.start().addErrback(lambda _: None)
        stopped = container.stop(1)
        self.reactor.advance(1 + KILL_WAIT_S)
        self.assertEqual(self.reactor.transport.signals, ["KILL"])
        self.assertNoResult(stopped)
        self.reactor.transport.gone = True
        self.reactor.advance(process.GONE_WAIT_S)
        self.assertEqual(self.failureResultOf(stopped, DiagnosedError).value.code, "ANBOX-C018")

    def test_a_launcher_that_fails_or_breaks(self) -> None:
        for say, code, why in (
            (
                {"event": "failed", "code": "ANBOX-C011", "what": "w", "why": "y", "cure": ""},
                "ANBOX-C011",
                "y",
            ),
            ({"event": "failed", "code": "NEW", "what": "w", "why": "y", "cure": ""}, "ANBOX-C024", "y"),
            (None, "ANBOX-C012", "ValueError: x"),
        ):
            container = self.container()
            started = container.start()
            if say is not None:
                self.reactor.say(**say)
            else:
                self.reactor.protocol.childDataReceived(2, b"Traceback\nValueError: x\n")
            self.reactor.end(ProcessTerminated(1))
            error = self.failureResultOf(started, DiagnosedError).value
            self.assertEqual((error.code, error.diagnosis.why), (code, why))
            self.assertEqual(self.successResultOf(container.when_exited()), "it never ran")

    def test_a_launcher_that_says_too_much_is_killed(self) -> None:
        container = self.container()
        container.start().addErrback(lambda _: None)
        self.reactor.protocol.childDataReceived(1, b"x" * (MAX_EVENT_BYTES + 1))
        self.assertEqual(self.reactor.transport.signals, ["KILL"])
        self.reactor.transport.gone = True
        self.reactor.protocol.kill()

    def test_a_launcher_that_cannot_be_run(self) -> None:
        self.reactor.error = OSError(errno.EAGAIN, "Resource temporarily unavailable")
        error = self.assertRaises(DiagnosedError, self.container().start)
        self.assertIn("temporarily", error.diagnosis.why)

    def test_notes_say_what_is_not_used(self) -> None:
        container = self.container(
            use_rootfs_overlay=True, image="/x.img", network=NetworkSpec(address="10.0.0.2/24")
        )
        container.start()
        self.reactor.say(**STARTED)
        notes = " ".join(container.info()["notes"])
        for word in ("overlay", "image", "address", "no isolation", "noted"):
            self.assertIn(word, notes)

    def test_ends(self) -> None:
        for event, stopping, text in (
            ({"status": 3}, False, "init ended with status 3"),
            ({"signal": 11}, False, "init was killed by SIGSEGV"),
            ({"signal": 9, "killed": True}, True, "init was killed by SIGKILL on request"),
            ({"signal": 9, "killed": True}, False, "init was killed by SIGKILL"),
            ({"signal": 250}, False, "init was killed by signal 250"),
            ({}, False, "init ended with status ?"),
        ):
            self.assertEqual(process._describe_exit(event, stopping), text)

    def test_name_servers_of_a_rootfs(self) -> None:
        root = os.path.abspath(self.mktemp())
        os.makedirs(f"{root}/etc")
        self.assertEqual(process._resolv_conf(root), "/etc/resolv.conf")
        os.symlink("../run/resolv", f"{root}/etc/resolv.conf")
        self.assertEqual(process._resolv_conf(root), "/run/resolv")
