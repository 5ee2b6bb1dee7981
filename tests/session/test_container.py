"""The container's supervision: a manager played by the test, time by the clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.errors import NotRunning
from anbox_tw.rpc import ChannelClosed, RemoteError, UnknownMethod
from anbox_tw.session._state import Phase, SessionState
from anbox_tw.session.container import (
    RETRY_S,
    STEADY_S,
    STOP_TIMEOUT_S,
    UNREACHED_RETRY_S,
    ContainerRequest,
    ContainerSupervisor,
)
from tests.session.fakes import FakeManager, FakeManagers


class SupervisorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.state = SessionState(lambda what: None)
        self.managers = FakeManagers()
        self.news: list[dict[str, Any]] = []
        self.request = ContainerRequest("default", bind_mounts=(("/a", "dev/a"),))
        self.supervisor = ContainerSupervisor(
            self.clock, self.managers.connect, self.request, self.state, self.news.append
        )
        self.supervisor.startService()
        self.supervisor.startService()
        self.assertIs(self.state.phase, Phase.CONNECTING)

    def run_container(self) -> FakeManager:
        manager = self.managers.accept()
        self.assertIs(self.state.phase, Phase.STARTING)
        self.assertEqual(manager.requests, [self.request])
        manager.starting[-1].callback(None)
        self.assertIs(self.state.phase, Phase.RUNNING)
        return manager

    def waits(self, seconds: float, words: str) -> None:
        """It waits so long, says why, and then dials again."""
        self.assertIs(self.state.phase, Phase.WAITING)
        self.assertIn(words, self.supervisor.failure)
        self.assertIn(words, self.state.detail)
        dialled = len(self.managers.dialled)
        self.clock.advance(seconds - 0.01)
        self.assertEqual(len(self.managers.dialled), dialled)
        self.clock.advance(0.02)
        self.assertEqual(len(self.managers.dialled), dialled + 1)
        self.assertIs(self.state.phase, Phase.CONNECTING)

    def stop(self) -> None:
        self.successResultOf(self.supervisor.stopService())
        self.assertIs(self.state.phase, Phase.STOPPED)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_container_runs_and_what_the_manager_knows_is_told(self) -> None:
        manager = self.run_container()
        self.assertEqual(self.supervisor.failure, "")
        self.assertEqual([news.get("state") for news in self.news], ["running"])
        self.assertEqual(self.news[-1]["pid"], 4711)
        manager.callback({"state": "running", "phase": "late"})
        self.assertEqual(self.news[-1]["phase"], "late")
        self.stop()
        self.assertEqual(manager.stops, 1)
        self.assertTrue(manager.closed)

    def test_a_manager_that_is_not_there_is_dialled_ever_less_often(self) -> None:
        for delay in (*RETRY_S, RETRY_S[-1]):
            self.managers.dialled[-1].errback(NotRunning("nobody answers"))
            self.waits(min(delay, UNREACHED_RETRY_S), "nobody answers")
        self.run_container()
        self.stop()

    def test_a_refused_start_says_why_and_is_tried_again(self) -> None:
        manager = self.managers.accept()
        manager.starting[-1].errback(RemoteError("no image", "fetch one", code="ANBOX-C002"))
        self.assertTrue(manager.closed)
        self.waits(RETRY_S[0], "ANBOX-C002: no image (fetch one)")
        for delay in (*RETRY_S[1:], RETRY_S[-1]):
            self.managers.accept().starting[-1].errback(RemoteError("no image"))
            self.waits(delay, "no image")
        self.run_container()
        self.assertEqual(self.supervisor.failure, "")
        self.stop()

    def test_a_manager_lost_while_it_starts(self) -> None:
        manager = self.managers.accept()
        manager.lose("killed")
        manager.starting[-1].errback(ChannelClosed("start_container has no answer: killed"))
        self.waits(RETRY_S[0], "killed")
        self.stop()

    def test_a_manager_lost_later(self) -> None:
        self.run_container().lose("killed")
        self.assertEqual(self.news[-1], {})
        self.waits(RETRY_S[0], "lost the connection to the container manager: killed")
        self.run_container()
        self.assertEqual(self.state.starts, 2)
        self.stop()

    def test_a_container_that_ends(self) -> None:
        for event, words in (
            ({"state": "stopped", "phase": ""}, "its init has ended"),
            ({"state": "failed", "failure": "init was killed"}, "init was killed"),
        ):
            manager = self.run_container()
            manager.callback(event)
            self.assertTrue(manager.closed)
            self.waits(self.clock.seconds() and RETRY_S[1] or RETRY_S[0], words)
        self.stop()

    def test_after_a_good_run_the_waits_begin_anew(self) -> None:
        for delay in RETRY_S[:3]:
            self.managers.dialled[-1].errback(NotRunning("no"))
            self.waits(delay, "no")
        manager = self.run_container()
        self.clock.advance(STEADY_S)
        manager.lose("killed")
        self.waits(RETRY_S[0], "killed")
        self.stop()

    def test_events_while_it_starts_end_nothing(self) -> None:
        manager = self.managers.accept()
        manager.callback({"state": "stopped"})
        manager.starting[-1].callback(None)
        self.assertIs(self.state.phase, Phase.RUNNING)
        self.stop()

    def test_the_originals_manager_tells_nothing_and_serves_all_the_same(self) -> None:
        class Original(FakeManager):
            refuses = False

            def watch(self, instance: str, callback: Any) -> Deferred[dict[str, Any]]:
                answer: Deferred[dict[str, Any]] = Deferred()
                if self.refuses:
                    answer.errback(UnknownMethod("no watch_containers"))
                return answer

            def info(self, instance: str) -> Deferred[dict[str, Any]]:
                return self.watch(instance, print)

        for refuses in (False, True):
            self.setUp()
            manager = Original()
            manager.refuses = refuses
            self.managers.dialled[-1].callback(manager)
            manager.starting[-1].callback(None)
            self.assertIs(self.state.phase, Phase.RUNNING)
            self.assertEqual(self.news, [])
            self.stop()

    def test_stopping_in_each_phase(self) -> None:
        def connecting() -> None:
            self.managers.dialled[-1].addErrback(
                lambda failure: Failure(ConnectingCancelledError(None))  # as an endpoint says it
            )

        def starting() -> None:
            self.managers.accept()

        def running() -> None:
            self.run_container()

        def waiting() -> None:
            self.managers.dialled[-1].errback(NotRunning("no"))

        for prepare in (connecting, starting, running, waiting):
            self.setUp()
            prepare()
            self.stop()
            self.successResultOf(self.supervisor.stopService())
            self.assertEqual([manager.stops for manager in self.managers.made], [1] * len(self.managers.made))

    def test_stopping_while_the_connection_of_a_failed_start_is_closed(self) -> None:
        manager = self.managers.accept()
        closing: Deferred[None] = Deferred()
        manager.close = lambda: closing  # type: ignore[method-assign]
        manager.starting[-1].errback(RemoteError("no image"))
        self.assertIs(self.state.phase, Phase.WAITING)
        self.stop()

    def test_a_manager_that_does_not_stop_is_left_after_a_while(self) -> None:
        manager = self.run_container()
        manager.stopping = Deferred()
        stopped = self.supervisor.stopService()
        self.assertIs(self.state.phase, Phase.STOPPING)
        self.assertNoResult(stopped)
        self.clock.advance(STOP_TIMEOUT_S)
        self.successResultOf(stopped)
        self.assertIs(self.state.phase, Phase.STOPPED)

    def test_a_stop_that_takes_a_while_is_waited_for(self) -> None:
        manager = self.run_container()
        manager.stopping = Deferred()
        stopped = self.supervisor.stopService()
        self.assertNoResult(stopped)
        self.assertFalse(manager.closed)
        manager.stopping.callback(None)
        self.successResultOf(stopped)
        self.assertTrue(manager.closed)

    def test_a_defect_is_logged_and_tried_again(self) -> None:
        self.managers.dialled[-1].errback(ZeroDivisionError("a defect"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.waits(RETRY_S[0], "a defect")
        self.managers.accept().starting[-1].errback(ZeroDivisionError("another"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.waits(RETRY_S[1], "another")
        self.stop()
