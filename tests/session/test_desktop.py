"""The applications' database: what it remembers, how its file survives, and what becomes of the launchers."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.rpc._pb import anbox_bridge_pb2 as pb
from anbox_tw.session import applications as applications_module
from anbox_tw.session.applications import ApplicationDatabase, DatabaseError, NewerDatabase
from anbox_tw.session.bridge import Application, Bridge
from anbox_tw.session.clipboard import Clipboard
from anbox_tw.session.desktop import SETTLE_S, DesktopFiles
from anbox_tw.session.launchers import LauncherDirectory
from tests.session.test_launchers import png

texts = st.text(max_size=30)
apps = st.builds(
    Application,
    name=texts,
    package=st.text(min_size=1, max_size=30),
    component=texts,
    intent=st.fixed_dictionaries(
        {}, optional={"action": st.text(min_size=1, max_size=9), "uri": st.text(min_size=1)}
    ),
)


class DatabaseTests(SynchronousTestCase):
    @settings(max_examples=150)
    @given(st.lists(apps, max_size=8))
    def test_the_file_gives_back_what_was_taken(self, listed: list[Application]) -> None:
        database, again = ApplicationDatabase(), ApplicationDatabase()
        database.take(listed)
        data = database.to_bytes()
        again.load(data)
        self.assertEqual(again.applications, database.applications)
        self.assertEqual(again.to_bytes(), data)
        self.assertEqual(again.reported, set())

    @settings(max_examples=150)
    @given(
        st.binary(max_size=80)
        | st.recursive(
            st.none() | st.integers() | texts,
            lambda x: (
                st.lists(x) | st.dictionaries(st.sampled_from(["version", "applications", "package"]), x)
            ),
        ).map(lambda x: json.dumps(x).encode())
    )
    def test_garbage_is_refused_and_changes_nothing(self, data: bytes) -> None:
        database = ApplicationDatabase()
        database.take([Application("A", "a")])
        try:
            database.load(data)
        except DatabaseError:
            self.assertEqual(list(database.applications), ["a"])
        else:
            self.assertEqual(json.loads(data)["version"], 1)

    def test_what_cannot_be_used(self) -> None:
        def content(**entry: Any) -> bytes:
            whole = {"package": "p", "name": "n", "component": "c", "intent": {}, **entry}
            return json.dumps({"version": 1, "applications": [whole]}).encode()

        database = ApplicationDatabase()
        database.load(content())
        for bad in (
            content(package=""),
            content(name=None),
            content(intent=[]),
            content(name="x" * 2000),
            content(intent={"categories": "abc"}),
            content(intent={"categories": ["x"] * 100}),
            content(intent={"uri": 7}),
            b'{"version": 0}',
            b"[" * 100_000,
        ):
            with self.assertRaises(DatabaseError) as caught:
                database.load(bad)
            self.assertNotIsInstance(caught.exception, NewerDatabase)
        with self.assertRaises(NewerDatabase):
            database.load(b'{"version": 2, "future": true}')
        self.assertEqual(list(database.applications), ["p"])

    def test_it_is_bounded_and_what_the_guest_has_goes_first(self) -> None:
        self.patch(applications_module, "MAX_APPLICATIONS", 2)
        database = ApplicationDatabase()
        database.take([Application("1", "old1"), Application("2", "old2")])
        database.guest_left()
        self.assertTrue(database.take([Application("3", "new1")]))
        self.assertEqual(list(database.applications), ["old2", "new1"])
        database.take([Application("4", "new2"), Application("5", "new3")])
        self.assertEqual(list(database.applications), ["new1", "new2"])

    def test_a_file_is_not_larger_than_what_is_read_again(self) -> None:
        self.patch(applications_module, "MAX_DATABASE_BYTES", 10)
        with self.assertRaises(DatabaseError):
            ApplicationDatabase().load(b"x" * 11)


class DesktopCase(TestCase):
    def setUp(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="ad-"))
        self.addCleanup(shutil.rmtree, self.top)
        self.clock = Clock()
        self.bridge = Bridge(self.clock, Clipboard())
        self.launchers: LauncherDirectory | None = None
        self.file = self.top / "state/applications.json"

    def make(self, **changes: Any) -> DesktopFiles:
        arguments: dict[str, Any] = {
            "reactor": self.clock,
            "bridge": self.bridge,
            "state_path": str(self.top / "state"),
            "launchers": self.launchers,
            "in_thread": maybeDeferred,
            **changes,
        }
        return DesktopFiles(**arguments)

    def report(self, *packages: str, removed: tuple[str, ...] = (), icon: bytes = b"") -> None:
        kind = pb.ApplicationListUpdateEvent.Application
        self.bridge._applications_changed(
            pb.ApplicationListUpdateEvent(
                applications=[kind(name=package.upper(), package=package, icon=icon) for package in packages],
                removed_applications=[kind(name="unknown", package=package) for package in removed],
            )
        )

    def kept(self) -> list[str]:
        return [app["package"] for app in json.loads(self.file.read_text())["applications"]]

    def known(self, desktop: DesktopFiles) -> list[str]:
        known = [app.package for app in desktop.applications()]
        self.assertEqual(len(desktop), len(known))
        return known

    def stop(self, desktop: DesktopFiles) -> None:
        self.successResultOf(desktop.stopService())


class MemoryTests(DesktopCase):
    def test_it_survives_a_restart(self) -> None:
        desktop = self.make()
        desktop.startService()
        desktop.startService()
        self.report("a", "b")
        self.report(removed=("b",))
        self.assertEqual((self.kept(), desktop.label_of("a"), desktop.label_of("b")), (["a"], "A", ""))
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o600)
        self.stop(desktop)
        self.stop(desktop)
        self.report("late")
        self.assertEqual(self.kept(), ["a"])
        self.bridge.reset()
        again = self.make()
        again.startService()
        self.assertEqual(self.known(again), ["a"])
        self.report(removed=("a",))
        self.assertEqual((self.kept(), self.known(again)), ([], []))
        self.stop(again)

    def test_what_a_booted_guest_does_not_report_is_forgotten(self) -> None:
        desktop = self.make()
        desktop.startService()
        self.report("a", "b")
        self.bridge._tell("disconnected", None)
        self.bridge.reset()
        self.bridge._tell("boot_finished", False)
        self.clock.advance(SETTLE_S - 1)
        self.report("b", "c")
        self.clock.advance(SETTLE_S - 1)
        self.assertEqual(self.known(desktop), ["a", "b", "c"])
        self.clock.advance(1)
        self.assertEqual((self.known(desktop), self.kept()), (["b", "c"], ["b", "c"]))
        self.stop(desktop)

    def test_a_guest_that_says_nothing_takes_nothing_away(self) -> None:
        desktop = self.make()
        desktop.startService()
        self.report("a")
        self.bridge._tell("disconnected", None)
        self.bridge.reset()
        self.bridge._tell("boot_finished", False)
        self.clock.advance(SETTLE_S + 1)
        self.assertEqual(self.known(desktop), ["a"])
        self.bridge._tell("boot_finished", False)
        self.bridge._tell("disconnected", None)
        self.bridge._tell("boot_finished", False)
        self.stop(desktop)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_package_both_reported_and_removed_is_gone(self) -> None:
        desktop = self.make()
        desktop.startService()
        self.report("a", removed=("a", ""))
        self.assertEqual(self.known(desktop), [])
        self.stop(desktop)

    def test_a_damaged_file_is_replaced_and_a_newer_one_stays(self) -> None:
        for content, replaced in ((b"{", True), (b'{"version": 9}', False)):
            self.file.parent.mkdir(exist_ok=True)
            self.file.write_bytes(content)
            desktop = self.make()
            desktop.startService()
            self.report("a")
            self.stop(desktop)
            self.assertEqual(self.file.read_bytes() != content, replaced)
            self.bridge.reset()

    def test_without_a_directory_it_lives_in_memory(self) -> None:
        desktop = self.make(state_path="")
        desktop.startService()
        self.report("a")
        self.assertEqual((desktop.path, self.known(desktop), os.listdir(self.top)), ("", ["a"], []))
        self.stop(desktop)

    def test_a_disk_that_fails_is_told_and_tried_again(self) -> None:
        (self.top / "state").write_text("in the way")
        desktop = self.make()
        desktop.startService()
        self.report("a")
        self.assertEqual(self.known(desktop), ["a"])
        (self.top / "state").unlink()
        self.report("b")
        self.assertEqual(self.kept(), ["a", "b"])
        self.stop(desktop)

    def test_a_burst_is_one_write_at_a_time(self) -> None:
        waiting: list[tuple[Any, Deferred[Any]]] = []

        def later(work: Any) -> Deferred[Any]:
            waiting.append((work, Deferred()))
            return waiting[-1][1]

        desktop = self.make(in_thread=later)
        desktop.startService()
        for number in range(50):
            self.report(f"p{number:02}")
        stopped = desktop.stopService()
        rounds = 0
        while waiting:
            (work, done) = waiting.pop()
            self.assertNoResult(stopped)
            rounds += 1
            done.callback(work())
        self.successResultOf(stopped)
        self.assertEqual((rounds, len(self.kept())), (2, 50))

    def test_a_thread_that_fails_does_not_end_it(self) -> None:
        failing = [True]

        def thread(work: Any) -> Deferred[Any]:
            if failing.pop() if failing else False:
                raise RuntimeError("no thread")
            return maybeDeferred(work)

        desktop = self.make(in_thread=thread)
        desktop.startService()
        self.report("a")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.report("b")
        self.stop(desktop)
        self.assertEqual(self.kept(), ["a", "b"])


class LauncherTests(DesktopCase):
    def setUp(self) -> None:
        super().setUp()
        self.directory = self.top / "applications"
        self.launchers = LauncherDirectory(str(self.directory), "default", ["anbox", "launch"])

    def names(self) -> list[str]:
        return sorted(os.listdir(self.directory)) if self.directory.exists() else []

    def test_they_follow_the_guest(self) -> None:
        desktop = self.make()
        desktop.startService()
        self.assertEqual(self.names(), [])
        self.report("a", "b", icon=png())
        self.report(removed=("b",))
        self.assertEqual(self.names(), ["anbox-a.desktop", "anbox-a.png"])
        self.bridge.reset()
        self.stop(desktop)
        (self.directory / "anbox-b.desktop").write_text("[Desktop Entry]\nX-Anbox-Instance=default\n")
        (self.directory / "anbox-a.desktop").unlink()
        again = self.make()
        again.startService()
        # Put right at the start, from the database alone, with the icon of last time.
        self.assertEqual(self.names(), ["anbox-a.desktop", "anbox-a.png"])
        self.assertIn("Icon=", (self.directory / "anbox-a.desktop").read_text())
        self.stop(again)

    def test_a_directory_that_is_not_ours_is_told_and_the_database_kept(self) -> None:
        self.directory.write_text("in the way")
        desktop = self.make()
        desktop.startService()
        self.report("a", "b")
        self.assertEqual(self.kept(), ["a", "b"])
        self.stop(desktop)

    def test_more_than_the_database_takes_gets_no_launcher(self) -> None:
        self.patch(applications_module, "MAX_APPLICATIONS", 1)
        desktop = self.make()
        desktop.startService()
        self.report("a", "b")
        self.assertEqual(self.names(), ["anbox-a.desktop"])
        self.stop(desktop)


class ThreadTests(DesktopCase):
    async def test_with_the_reactors_threads(self) -> None:
        self.launchers = LauncherDirectory(str(self.top / "l"), "default", ["anbox", "launch"])
        self.bridge = Bridge(reactor, Clipboard())
        desktop = self.make(reactor=reactor, in_thread=None)
        desktop.startService()
        self.report("a", icon=png())
        self.report("b")
        await desktop.stopService()
        self.assertEqual(self.kept(), ["a", "b"])
        self.assertEqual(
            sorted(os.listdir(self.top / "l")), ["anbox-a.desktop", "anbox-a.png", "anbox-b.desktop"]
        )
