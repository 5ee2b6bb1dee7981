"""The rules of one service's life, with a clock that is turned by hand."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.android.init._actions import MAX_QUEUED_TRIGGERS, ActionQueue, Builtin
from anbox_tw.android.init._state import Flag, ServiceState
from anbox_tw.android.rc import parse


class Host:
    """Writes down what the state asks for."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.pids = iter(range(100, 10000))
        self.events: list[str] = []
        self.reason: str | None = None
        self.spawns = True

    def now(self) -> float:
        return self.time

    def check(self, service: ServiceState) -> str | None:
        return self.reason

    def spawn(self, service: ServiceState) -> int | None:
        return next(self.pids) if self.spawns else None

    def kill_group(self, service: ServiceState, number: int) -> None:
        self.events.append(f"kill {number}")

    def remove_sockets(self, service: ServiceState) -> None:
        self.events.append("unlink")

    def notify(self, service: ServiceState, state: str) -> None:
        self.events.append(state)

    def run_onrestart(self, service: ServiceState) -> None:
        self.events.append("onrestart")

    def critical(self, service: ServiceState) -> None:
        self.events.append("critical")

    def refused(self, service: ServiceState, reason: str) -> None:
        self.events.append(f"refused {reason}")

    def take(self) -> list[str]:
        events, self.events = self.events, []
        return events


class ServiceTests(SynchronousTestCase):
    def make(self, *options: str) -> tuple[ServiceState, Host]:
        host = Host()
        spec = parse("service s /bin/s\n" + "".join(f" {option}\n" for option in options)).services["s"]
        return ServiceState(spec, host), host

    def test_a_crash_within_five_seconds_of_the_start_waits_until_five(self) -> None:
        service, host = self.make()
        self.assertTrue(service.start())
        self.assertEqual(host.take(), ["running"])
        host.time += 2
        self.assertFalse(service.reap())
        # its children first, its sockets, onrestart, and the word last
        self.assertEqual(host.take(), ["kill 9", "unlink", "onrestart", "restarting"])
        host.time += 1
        self.assertEqual(service.restart_if_due(), 1005.0)
        self.assertFalse(service.running)
        host.time = 1004.999
        self.assertEqual(service.restart_if_due(), 1005.0)
        host.time = 1005.0
        self.assertIsNone(service.restart_if_due())
        self.assertEqual((host.take(), service.pid), (["running"], 101))
        self.assertIsNone(service.restart_if_due())

    def test_a_crash_later_than_that_restarts_at_once(self) -> None:
        service, host = self.make()
        service.start()
        host.time += 60
        service.reap()
        self.assertIsNone(service.restart_if_due())
        self.assertTrue(service.running)

    def test_the_gap_is_constant(self) -> None:
        service, host = self.make()
        service.start()
        for _ in range(20):
            service.reap()
            self.assertEqual(service.restart_if_due(), host.time + 5)
            host.time += 5
            service.restart_if_due()
            self.assertTrue(service.running)

    def test_start_of_one_that_runs_makes_no_second_process_and_forgets_the_gap(self) -> None:
        service, host = self.make()
        service.start()
        self.assertFalse(service.start())
        self.assertEqual(service.starts, 1)
        service.reap()
        service.restart_if_due()
        self.assertTrue(service.running)

    def test_oneshot_ends_stopped_and_leaves_its_children(self) -> None:
        service, host = self.make("oneshot")
        service.start()
        host.take()
        service.reap()
        self.assertEqual(host.take(), ["unlink", "stopped"])
        self.assertIsNone(service.restart_if_due())
        service.start_if_not_disabled()
        self.assertFalse(service.running)
        self.assertTrue(service.start())

    def test_a_oneshot_restarted_by_hand_comes_back_once(self) -> None:
        service, host = self.make("oneshot")
        service.start()
        service.restart()
        host.take()
        service.reap()
        self.assertEqual(host.take(), ["kill 9", "unlink", "onrestart", "restarting"])
        host.time += 5
        service.restart_if_due()
        service.reap()
        self.assertEqual(service.state, "stopped")

    def test_stop_keeps_it_down_and_reset_until_its_class_starts(self) -> None:
        for stop in (True, False):
            service, host = self.make()
            service.start()
            host.take()
            service.stop() if stop else service.reset()
            self.assertEqual(host.take(), ["kill 9", "stopping"])
            service.reap()
            self.assertEqual(host.take(), ["kill 9", "unlink", "stopped"])
            host.time += 100
            self.assertIsNone(service.restart_if_due())
            service.start_if_not_disabled()
            self.assertEqual(service.running, not stop)

    def test_reset_of_one_that_the_file_disables_stays_disabled(self) -> None:
        service, _ = self.make("disabled")
        service.start()
        service.reset()
        service.reap()
        service.start_if_not_disabled()
        self.assertFalse(service.running)

    def test_stop_of_one_that_does_not_run_keeps_it_from_its_class(self) -> None:
        service, host = self.make()
        service.stop()
        self.assertEqual(host.take(), ["stopped"])
        service.start_if_not_disabled()
        self.assertFalse(service.running)

    def test_stop_while_it_waits_for_its_restart(self) -> None:
        service, host = self.make()
        service.start()
        service.reap()
        service.stop()
        host.time += 10
        self.assertIsNone(service.restart_if_due())
        self.assertEqual((service.running, service.state), (False, "stopped"))

    def test_start_while_it_is_being_stopped_brings_it_back_at_once(self) -> None:
        service, host = self.make()
        service.start()
        service.stop()
        self.assertFalse(service.start())
        service.reap()
        self.assertEqual(service.state, "restarting")
        service.restart_if_due()
        self.assertTrue(service.running)

    def test_restart(self) -> None:
        service, host = self.make("critical")
        service.restart()
        self.assertTrue(service.running)
        for _ in range(10):
            service.restart()
            service.reap()
            service.restart()  # already on its way
            host.time += 5
            service.restart_if_due()
            self.assertTrue(service.running)
        self.assertEqual(service.crashes, 0)
        self.assertNotIn("critical", host.events)

    def test_enable_starts_what_its_class_wanted(self) -> None:
        service, host = self.make("disabled")
        self.assertTrue(service.start_if_not_disabled())
        self.assertFalse(service.running)
        self.assertTrue(service.enable())
        self.assertTrue(service.running)
        other, _ = self.make("disabled")
        other.enable()
        self.assertFalse(other.running)
        other.start_if_not_disabled()
        self.assertTrue(other.running)

    def test_the_fifth_crash_of_a_critical_one_in_four_minutes(self) -> None:
        service, host = self.make("critical")
        service.start()
        for crash in range(1, 6):
            host.take()
            service.reap()
            self.assertEqual("critical" in host.events, crash == 5, crash)
            if crash < 5:
                host.time += 59
                service.restart_if_due()
        self.assertFalse(service.flags & Flag.RESTARTING)

    def test_a_slow_critical_crasher_opens_a_new_window(self) -> None:
        service, host = self.make("critical")
        service.start()
        for _ in range(30):
            service.reap()
            host.time += 61
            service.restart_if_due()
        self.assertNotIn("critical", host.events)

    def test_terminate_asks_and_keeps_it_down(self) -> None:
        service, host = self.make()
        service.terminate()
        self.assertEqual(host.take(), [])
        service, host = self.make()
        service.start()
        service.terminate()
        service.reap()
        self.assertEqual(host.take(), ["running", "kill 15", "stopping", "kill 9", "unlink", "stopped"])

    def test_what_cannot_start_is_disabled_or_left(self) -> None:
        service, host = self.make()
        host.reason = "cannot find it"
        self.assertFalse(service.start())
        self.assertEqual(
            (host.take(), service.flags & Flag.DISABLED), (["refused cannot find it"], Flag.DISABLED)
        )
        host.reason, host.spawns = None, False
        self.assertFalse(service.start())
        self.assertEqual((host.take(), service.pid, service.state), ([], 0, "stopped"))

    def test_an_exec_command_has_no_property(self) -> None:
        host = Host()
        spec = parse("service s /bin/s\n").services["s"]
        service = ServiceState(spec, host, exec_command=True)
        service.start()
        self.assertTrue(service.reap())
        self.assertEqual(host.take(), ["unlink"])


class ActionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.properties: dict[str, str] = {}
        self.queue = ActionQueue(lambda name: self.properties.get(name, ""))

    def load(self, text: str) -> None:
        self.queue.actions = parse(text).actions

    def drain(self) -> list[str]:
        found = []
        while self.queue.busy:
            item = self.queue.next()
            if isinstance(item, Builtin):
                found.append(item.name)
            elif item is not None:
                found.append(item[1].arguments[0])
        return found

    def test_events_run_in_order_and_builtins_take_their_turn(self) -> None:
        self.load("on b\n rm 1\n rm 2\non a\n rm 3\non a && property:x=1\n rm 4\n")
        self.queue.queue_event("a")
        self.queue.queue_builtin("own", lambda: None)
        self.queue.queue_event("b")
        self.queue.queue_event("none")
        self.assertEqual(self.drain(), ["3", "own", "1", "2"])
        self.properties["x"] = "1"
        self.queue.queue_event("a")
        self.assertEqual(self.drain(), ["3", "4"])

    def test_property_triggers(self) -> None:
        self.load(
            "on property:x=1\n rm one\non property:x=*\n rm any\non property:x=1 && property:y=2\n rm both\non boot && property:x=1\n rm never\n"
        )
        self.queue.queue_property("x", "1")
        self.assertEqual(self.drain(), ["one", "any"])
        self.properties["y"] = "2"
        self.queue.queue_property("x", "1")
        self.assertEqual(self.drain(), ["one", "any", "both"])
        self.properties["x"] = "1"
        self.queue.queue_property("y", "2")
        self.assertEqual(self.drain(), ["both"])
        self.queue.queue_property("z", "1")
        self.assertEqual(self.drain(), [])
        self.queue.queue_all_properties()
        self.assertEqual(self.drain(), ["one", "any", "both"])

    def test_commands_added_while_the_action_runs_are_run(self) -> None:
        self.load("on a\n rm 1\n")
        self.queue.queue_event("a")
        item = self.queue.next()
        assert isinstance(item, tuple)
        item[0].commands.append(parse("on a\n rm 2\n").actions[0].commands[0])
        self.assertTrue(self.queue.busy)
        self.assertEqual(self.drain(), ["2"])

    def test_the_queue_has_an_end(self) -> None:
        for _ in range(MAX_QUEUED_TRIGGERS + 5):
            self.queue.queue_event("a")
        self.assertEqual(self.queue.dropped, 5)
