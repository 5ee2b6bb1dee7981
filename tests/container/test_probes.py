"""What the host is asked: against made-up hosts, and for real against this one."""

from __future__ import annotations

import json
import os
from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred, inlineCallbacks
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.container import probes
from anbox_tw.container.backends import BACKENDS
from anbox_tw.container.commands import Commands
from anbox_tw.container.diagnosis import DiagnosedError, Probe
from anbox_tw.container.doctor import DoctorReport, examine
from anbox_tw.container.probes import CHECKS, Finding, HostView, run_checks
from anbox_tw.errors import ExitCode
from tests.support import need_root, need_tool


class FakeCommands:
    """Answers for tools, by the first words of their command line."""

    def __init__(self, answers: dict[str, tuple[int, str]] | None = None) -> None:
        self.answers = answers or {}
        self.run_lines: list[str] = []

    def run(self, argv: list[str], **kw: Any) -> Deferred[Any]:
        from twisted.internet.defer import succeed

        from anbox_tw.container.commands import Completed

        line = " ".join(argv)
        self.run_lines.append(line)
        for start, (status, text) in self.answers.items():
            if line.startswith(start):
                return succeed(
                    Completed(tuple(argv), status, text.encode(), b"" if status == 0 else text.encode())
                )
        raise AssertionError(f"{line} was not expected")


class MadeUpHost(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = os.path.abspath(self.mktemp())
        for name in ("proc/sys/user", "proc/sys/kernel", "sys/fs/cgroup", "dev/net", "etc", "bin"):
            os.makedirs(f"{self.root}/{name}")
        self.commands = FakeCommands()

    def write(self, name: str, text: str = "") -> str:
        path = f"{self.root}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        return path

    def install(self, *names: str) -> None:
        for name in names:
            os.chmod(self.write(f"bin/{name}", "#!/bin/sh\n"), 0o755)
        self.patch(
            probes,
            "find_tool",
            lambda name, path: found if os.path.exists(found := f"{self.root}/bin/{name}") else None,
        )

    def host(self, **more: Any) -> HostView:
        return HostView(
            self.commands,  # type: ignore[arg-type]  # has the one method that checks use
            **{
                "environment": {"PATH": f"{self.root}/bin"},
                "proc": f"{self.root}/proc",
                "sys": f"{self.root}/sys",
                "dev": f"{self.root}/dev",
                "etc": f"{self.root}/etc",
                **more,
            },
        )

    def find(self, check: Any, **more: Any) -> Finding:
        work: Coroutine[Any, Any, Finding] = check(self.host(**more))
        finding: Finding = self.successResultOf(ensureDeferred(work))
        if not finding.ok:
            self.assertTrue(finding.cure, f"{check} has no cure")
        return finding

    def test_each_check_of_a_bare_host_has_a_cure(self) -> None:
        self.install()
        self.commands.answers = {"": (1, "refused")}
        for check in CHECKS:
            finding = self.find(check.run, uid=1000)
            self.assertTrue(finding.detail)

    def test_runtime_directory(self) -> None:
        for runtime, ok in (
            (None, True),
            (self.root, True),
            (f"{self.root}/new", True),
            (self.write("file"), False),
        ):
            self.assertEqual(self.find(probes._runtime_directory, runtime_dir=runtime).ok, ok)
        self.assertTrue(self.find(probes._runtime_directory, environment={"XDG_RUNTIME_DIR": self.root}).ok)
        self.patch(os, "access", lambda path, mode: False)
        self.assertIn("cannot be written", self.find(probes._runtime_directory, runtime_dir=self.root).detail)

    def test_data_path(self) -> None:
        self.assertTrue(self.find(probes._data_path, data_path=f"{self.root}/a/b").ok)
        self.assertFalse(self.find(probes._data_path, data_path=self.write("file")).ok)
        self.assertIn("/var/lib/anbox", self.find(probes._data_path, uid=0).detail)
        self.patch(probes, "_free_bytes", lambda path: 1 << 20)
        self.assertIn("1 MiB", self.find(probes._data_path, data_path=self.root).detail)

    def test_namespaces(self) -> None:
        started = {"event": "started", "namespaces": ["user"], "refused": {}, "notes": ["no /sys"]}
        for event, ok, text in (
            (started, True, "user; no /sys"),
            ({**started, "refused": {"net": "EPERM"}}, False, "no net: EPERM"),
            ({"event": "failed", "what": "x", "why": "unshare: EPERM"}, False, "unshare: EPERM"),
            ({"event": "other"}, False, "nothing"),
        ):
            self.commands.answers = {"": (0, json.dumps(event) + "\n")}
            finding = self.find(probes._namespaces)
            self.assertEqual(finding.ok, ok)
            if text != "nothing":
                self.assertIn(text, finding.detail)

    def test_the_cure_for_namespaces_names_what_refuses_them(self) -> None:
        for file, value, word in (
            ("user/max_user_namespaces", "0", "max_user_namespaces"),
            ("kernel/unprivileged_userns_clone", "0", "unprivileged_userns_clone"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor"),
        ):
            self.setUp()
            self.assertIn("Docker", probes._namespace_cure(self.host(uid=1000)))
            self.write(f"proc/sys/{file}", value + "\n")
            self.assertIn(word, probes._namespace_cure(self.host(uid=1000)))

    def test_slirp4netns(self) -> None:
        self.install("slirp4netns")
        self.assertIn("net/tun", self.find(probes._slirp4netns).detail)
        self.write("dev/net/tun")
        self.assertTrue(self.find(probes._slirp4netns).ok)

    def test_network(self) -> None:
        self.install("ip", "nft")
        for uid, start in ((0, "unshare --net ip"), (1, "unshare --net --user --map-root-user ip")):
            self.commands.answers = {start: (0, ""), start.replace(" ip", " nft"): (0, "")}
            for check in (probes._bridge, probes._veth, probes._nft):
                self.assertTrue(self.find(check, uid=uid).ok)
        self.commands.answers = {"": (2, "Operation not supported")}
        self.assertEqual(self.find(probes._veth).detail, "Operation not supported")

    def test_file_systems_and_devices(self) -> None:
        for check in (probes._squashfs, probes._binder, probes._fuse):
            self.assertFalse(self.find(check).ok)
        self.write("proc/filesystems", "\tsquashfs\nnodev\tbinder\n")
        self.write("dev/fuse")
        for check in (probes._squashfs, probes._binder, probes._fuse):
            self.assertTrue(self.find(check).ok)
        self.write("dev/binderfs/binder-control")
        self.assertIn("binderfs at", self.find(probes._binder).detail)

    def test_a_binder_device(self) -> None:
        os.symlink("/dev/null", f"{self.root}/dev/binder")
        self.assertIn("one instance", self.find(probes._binder).detail)

    def test_id_map(self) -> None:
        self.install()
        self.assertTrue(self.find(probes._id_map, uid=0).ok)
        self.assertIn("newuidmap", self.find(probes._id_map, uid=12345).detail)
        self.install("newuidmap", "newgidmap")
        self.write("etc/subuid", "other:1:99999\n12345:100000:65536\n12345:1:2:3\n12345:1:x\n")
        self.assertIn("subgid", self.find(probes._id_map, uid=12345).detail)
        self.write("etc/subgid", "12345:100000:65535\n")
        self.assertIn("subgid", self.find(probes._id_map, uid=12345).detail)
        self.write("etc/subgid", "12345:100000:65536\n")
        self.assertTrue(self.find(probes._id_map, uid=12345).ok)
        self.write("etc/subgid", "daemon:100000:65536\n")
        self.write("etc/subuid", "daemon:100000:65536\n")
        self.assertIn("daemon", self.find(probes._id_map, uid=1).detail)

    def test_adb(self) -> None:
        self.install("adb")
        self.commands.answers = {
            "adb version": (0, "Android Debug Bridge version 1.0.41\nVersion 36\nInstalled as x\n")
        }
        self.assertEqual(self.find(probes._adb).detail, "Android Debug Bridge version 1.0.41, Version 36")

    def test_a_check_that_fails_is_a_probe_that_is_not_ok(self) -> None:
        async def diagnosed(host: HostView) -> Finding:
            raise DiagnosedError.of("ANBOX-C025", "no tool", "", "install it")

        async def broken(host: HostView) -> Finding:
            raise OSError(5, "I/O")

        lxc = frozenset({"lxc"})
        self.patch(
            probes, "CHECKS", (probes.Check("a", diagnosed, lxc), probes.Check("b", broken, used_by=lxc))
        )
        found = self.successResultOf(run_checks(self.host(), "lxc"))
        self.assertEqual(
            [(p.name, p.verdict, p.cure) for p in found],
            [("a", "missing", "install it"), ("b", "degraded", "")],
        )
        self.assertEqual(len(self.successResultOf(run_checks(self.host(), "lxc", required_only=True))), 1)
        self.assertEqual(self.successResultOf(run_checks(self.host(), "process")), [])


class ReportTests(SynchronousTestCase):
    def report(self, ok: bool) -> DoctorReport:
        shared = Probe("python", True, "3.11")
        lxc = Probe("LXC tools", ok, "5.0", "" if ok else "install lxc")
        return DoctorReport({"process": [shared], "lxc": [shared, lxc]})

    def test_for_people(self) -> None:
        self.assertEqual(
            self.report(False).lines(),
            [
                "process backend: ready",
                "  ok        python     3.11",
                "lxc backend: cannot run here",
                "  missing   LXC tools  5.0",
                "                       -> install lxc",
            ],
        )

    def test_for_programs(self) -> None:
        data = self.report(False).as_dict()
        self.assertEqual(data["ready"], ["process"])
        self.assertEqual(data["backends"]["lxc"]["probes"][1]["verdict"], "missing")
        json.dumps(data)

    def test_exit_codes(self) -> None:
        self.assertEqual(self.report(False).exit_code, ExitCode.OK)
        only = DoctorReport({"lxc": self.report(False).backends["lxc"]})
        self.assertEqual(only.exit_code, ExitCode.HOST_LACKS)


class RealHostTests(TestCase):
    """This machine, for real."""

    @inlineCallbacks
    def test_the_process_backend_can_run_here(self) -> Any:
        from twisted.internet import reactor

        need_root()
        need_tool("slirp4netns")
        report = yield examine(
            HostView(Commands(reactor), data_path=os.path.abspath(self.mktemp())), BACKENDS
        )
        self.assertEqual(list(report.backends), list(BACKENDS))
        names = [probe.name for probe in report.backends["lxc"]]
        self.assertEqual(len(names), len(set(names)))
        self.assertTrue(report.ready("process"))
        verdicts = {probe.name: probe for probe in report.backends["process"]}
        self.assertEqual(verdicts["namespaces"].verdict, "ok", verdicts["namespaces"])
        for part in ("user", "mount", "pid", "net"):
            self.assertIn(part, verdicts["namespaces"].detail)
