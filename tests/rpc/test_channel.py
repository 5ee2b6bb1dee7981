from __future__ import annotations

import resource
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocolFactory, IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.errors import ContainerError, ExitCode, PeerError, PermissionRefused, TimedOut
from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.rpc import (
    CallTimedOut,
    Channel,
    ChannelClosed,
    Dispatcher,
    Domain,
    Limits,
    MessageTooBig,
    Peer,
    RemoteError,
    RpcCode,
    RpcFactory,
    TooManyCalls,
)
from anbox_tw.rpc._framing import INVOCATION, RESPONSE, FrameReader, encode_event, encode_response, frame
from anbox_tw.rpc._pb.anbox_bridge_pb2 import ClipboardData, SetFocusedTask
from anbox_tw.rpc._pb.anbox_container_pb2 import (
    Configuration,
    ContainerEvent,
    ContainerList,
    StartContainer,
    StopContainer,
)
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Invocation, Result, Void
from anbox_tw.testing.rpc import RpcLink


class Transport(StringTransport):
    """Knows whether it was aborted, and how many writes were made."""

    aborted = False
    writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        super().write(data)

    def abortConnection(self) -> None:
        self.aborted = True


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.dispatcher = Dispatcher()
        self.events: list[bytes] = []
        self.make()

    def make(self, **limits: Any) -> None:
        self.channel = Channel(
            self.clock,
            dispatcher=self.dispatcher,
            on_event=self.events.append,
            limits=Limits(**limits),
            name="the peer",
        )
        self.transport = Transport()
        self.channel.makeConnection(self.transport)

    def sent(self) -> list[Invocation | Result]:
        """What went out since the last look."""
        frames = FrameReader().receive_data(self.transport.value())
        self.transport.clear()
        return [
            Invocation.FromString(payload) if kind == INVOCATION else Result.FromString(payload)
            for kind, payload in frames
        ]

    def invoke(self, call_id: int, method: str, parameters: bytes = b"", version: int = 1) -> bytes:
        message = Invocation(id=call_id, method_name=method, parameters=parameters, protocol_version=version)
        return frame(INVOCATION, message.SerializeToString())

    def answer_of(self, call_id: int) -> Void:
        """The error answer to ``call_id``, which must be all that was sent."""
        [result] = self.sent()
        assert isinstance(result, Result)
        self.assertEqual(result.id, call_id)
        return Void.FromString(result.response)

    def lose(self, reason: Exception | None = None) -> None:
        self.channel.connectionLost(Failure(reason or ConnectionDone()))


class CallTests(Base):
    def test_a_call_is_answered(self) -> None:
        call = self.channel.call("get_clipboard_data", Void(), ClipboardData)
        [invocation] = self.sent()
        self.assertEqual(
            invocation, Invocation(id=0, method_name="get_clipboard_data", parameters=b"", protocol_version=1)
        )
        self.assertNoResult(call)
        self.channel.dataReceived(encode_response(0, ClipboardData(text="hi").SerializeToString()))
        self.assertEqual(self.successResultOf(call).text, "hi")

    def test_concurrent_calls_of_one_method_are_told_apart(self) -> None:
        calls = [self.channel.call("get", Void(), ClipboardData) for _ in range(3)]
        self.assertEqual([m.id for m in self.sent()], [0, 1, 2])
        for call_id in (2, 0, 1):
            text = ClipboardData(text=str(call_id)).SerializeToString()
            self.channel.dataReceived(encode_response(call_id, text))
        self.assertEqual([self.successResultOf(call).text for call in calls], ["0", "1", "2"])

    def test_ids_wrap_and_leave_out_those_in_use(self) -> None:
        first = self.channel.call("first", Void(), Void)
        self.channel._next_id = 0xFFFFFFFF
        second = self.channel.call("second", Void(), Void)
        third = self.channel.call("third", Void(), Void)
        self.assertEqual([m.id for m in self.sent()], [0, 0xFFFFFFFF, 1])
        for call_id in (0, 0xFFFFFFFF, 1):
            self.channel.dataReceived(encode_response(call_id, b""))
        for call in (first, second, third):
            self.successResultOf(call)

    def test_structured_remote_error(self) -> None:
        call = self.channel.call("start_container", Void(), Void)
        answer = Void(error="ANBOX-C012: no image (get one)")
        structured = answer.structured_error
        structured.domain, structured.code, structured.exit_code = Domain.CONTAINER, 12, 6
        structured.cause, structured.cure, structured.identifier = "no image", "get one", "ANBOX-C012"
        self.channel.dataReceived(encode_response(0, answer.SerializeToString()))
        error = self.failureResultOf(call, RemoteError).value
        self.assertEqual((error.cause, error.cure, error.code), ("no image", "get one", "ANBOX-C012"))
        self.assertEqual((error.domain, error.number, error.exit_code), (2, 12, ExitCode.HOST_LACKS))
        self.assertEqual(str(error), "ANBOX-C012: no image (get one)")

    def test_error_of_an_old_peer_is_its_text(self) -> None:
        call = self.channel.call("stop_container", StopContainer(), Void)
        self.channel.dataReceived(
            encode_response(0, Void(error="Container is not running").SerializeToString())
        )
        error = self.failureResultOf(call, RemoteError).value
        self.assertEqual((error.cause, error.code, error.exit_code), ("Container is not running", "", 1))

    def test_error_without_words_and_with_a_foreign_exit_code(self) -> None:
        call = self.channel.call("m", Void(), Void)
        answer = Void()
        answer.structured_error.exit_code = 77
        self.channel.dataReceived(encode_response(0, answer.SerializeToString()))
        error = self.failureResultOf(call, RemoteError).value
        self.assertEqual(error.exit_code, ExitCode.FAILED)
        self.assertIn("without words", error.cause)

    def test_error_for_an_answer_type_without_error_fields(self) -> None:
        call = self.channel.call("odd", Void(), SetFocusedTask)
        self.channel.dataReceived(encode_response(0, Void(error="no").SerializeToString()))
        self.assertEqual(self.failureResultOf(call, RemoteError).value.cause, "no")
        call = self.channel.call("odd", Void(), SetFocusedTask)
        self.channel.dataReceived(encode_response(1, SetFocusedTask(id=4).SerializeToString()))
        self.assertEqual(self.successResultOf(call).id, 4)

    def test_timeout_is_by_call(self) -> None:
        slow = self.channel.call("slow", Void(), Void, timeout=30)
        quick = self.channel.call("quick", Void(), Void, timeout=3)
        for_ever = self.channel.call("for_ever", Void(), Void, timeout=None)
        self.clock.advance(2.9)
        self.assertNoResult(quick)
        self.clock.advance(0.1)
        error = self.failureResultOf(quick, CallTimedOut).value
        self.assertIsInstance(error, TimedOut)
        self.assertIn("quick had no answer from the peer within 3 s", str(error))
        self.assertNoResult(slow)
        self.clock.advance(27)
        self.failureResultOf(slow, CallTimedOut)
        self.clock.advance(100_000)
        self.assertNoResult(for_ever)
        self.channel.dataReceived(encode_response(2, b""))
        self.successResultOf(for_ever)

    def test_many_calls_leave_one_timer(self) -> None:
        for _ in range(100):
            call = self.channel.call("m", Void(), Void)
            self.channel.dataReceived(encode_response(self.channel._next_id - 1, b""))
            self.successResultOf(call)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(31)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_late_answer_to_a_timed_out_or_cancelled_call_is_dropped_quietly(self) -> None:
        late = self.channel.call("late", Void(), Void, timeout=1)
        cancelled = self.channel.call("cancelled", Void(), Void)
        cancelled.cancel()
        self.clock.advance(1)
        self.failureResultOf(late, CallTimedOut)
        self.failureResultOf(cancelled, CancelledError)
        self.channel.dataReceived(encode_response(0, b"") + encode_response(1, b""))
        self.assertEqual(self.channel._complaints, 0)
        self.assertIsNone(self.channel.closed)

    def test_abandoned_ids_are_bounded(self) -> None:
        for _ in range(2000):
            call = self.channel.call("m", Void(), Void)
            call.addErrback(lambda _: None)
            call.cancel()
        self.assertEqual(len(self.channel._abandoned), 1024)

    def test_disconnect_fails_all_with_its_cause(self) -> None:
        calls = [self.channel.call("m", Void(), Void, timeout=None) for _ in range(3)]
        self.lose(ConnectionLost("cable cut"))
        for call in calls:
            error = self.failureResultOf(call, ChannelClosed).value
            self.assertIn("cable cut", str(error))
            self.assertTrue(error.reason.check(ConnectionLost))
        after = self.failureResultOf(self.channel.call("m", Void(), Void), ChannelClosed).value
        self.assertIn("cable cut", str(after))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_call_before_the_connection_fails(self) -> None:
        channel = Channel(self.clock)
        self.failureResultOf(channel.call("m", Void(), Void), ChannelClosed)

    def test_disconnect_may_call_again_from_its_errback(self) -> None:
        again: list[Deferred[Void]] = []
        call = self.channel.call("m", Void(), Void)
        call.addErrback(lambda _: again.append(self.channel.call("n", Void(), Void)))
        self.lose()
        self.failureResultOf(again[0], ChannelClosed)

    def test_limit_of_calls(self) -> None:
        self.make(max_calls=2)
        calls = [self.channel.call("m", Void(), Void) for _ in range(3)]
        self.failureResultOf(calls[2], TooManyCalls)
        self.channel.dataReceived(encode_response(0, b""))
        self.successResultOf(calls[0])
        self.assertNoResult(self.channel.call("m", Void(), Void))

    def test_oversize_call_fails_and_nothing_is_sent(self) -> None:
        self.sent()
        call = self.channel.call("set", ClipboardData(text="x" * (1 << 24)), Void)
        self.failureResultOf(call, MessageTooBig)
        self.assertEqual(self.transport.value(), b"")
        self.assertRaises(MessageTooBig, self.channel.send_event, ClipboardData(text="x" * (1 << 24)))

    def test_call_without_a_required_field_fails(self) -> None:
        call = self.channel.call("m", StartContainer(), Void)
        self.assertIn("configuration", str(self.failureResultOf(call).value))

    def test_answer_that_is_not_the_message(self) -> None:
        bad = self.channel.call("m", Void(), ContainerList)
        poor = self.channel.call("m", Void(), SetFocusedTask)
        self.channel.dataReceived(encode_response(0, b"\xff\xff") + encode_response(1, b""))
        self.assertIn("no ContainerList", str(self.failureResultOf(bad, PeerError).value))
        foreign = self.channel.call("m", Void(), ClipboardData)
        foreign_error = self.channel.call("m", Void(), Void)
        self.channel.dataReceived(
            encode_response(2, b"\x0a\x02\xff\xfe") + encode_response(3, b"\xfa\x07\x02\xff\xfe")
        )
        self.assertIn("not UTF-8", str(self.failureResultOf(foreign, PeerError).value))
        self.assertIn("not UTF-8", str(self.failureResultOf(foreign_error, PeerError).value))
        self.assertIn("required id", str(self.failureResultOf(poor, PeerError).value))
        self.assertIsNone(self.channel.closed)

    def test_answer_to_nothing_is_ignored(self) -> None:
        for _ in range(5):
            self.channel.dataReceived(encode_response(99, b""))
        self.assertEqual(self.channel._complaints, 5)
        self.assertNoResult(self.channel.call("still works", Void(), Void))

    def test_oversize_answer_fails_its_call(self) -> None:
        self.make(max_payload=100)
        call = self.channel.call("m", Void(), ClipboardData)
        data = encode_response(0, ClipboardData(text="x" * 200).SerializeToString())
        self.channel.dataReceived(data[:150])
        self.assertIn("limit of 100", str(self.failureResultOf(call, MessageTooBig).value))
        other = self.channel.call("m", Void(), Void)
        self.channel.dataReceived(data[150:] + encode_response(1, b""))
        self.successResultOf(other)

    def test_oversize_event_is_dropped(self) -> None:
        self.make(max_payload=100)
        self.channel.dataReceived(encode_event(b"x" * 200) + encode_event(b"ok"))
        self.assertEqual(self.events, [b"ok"])


class EventTests(Base):
    def test_events_come_in_order_and_before_the_answer(self) -> None:
        order: list[Any] = []
        self.channel.on_event = order.append
        self.channel.call("m", Void(), Void).addCallback(lambda _: order.append("answer"))
        both = Result(id=0, response=b"", events=[b"1", b"2"])
        self.channel.dataReceived(frame(RESPONSE, both.SerializeToString()) + encode_event(b"3"))
        self.assertEqual(order, [b"1", b"2", "answer", b"3"])

    def test_an_event_is_a_result_without_id(self) -> None:
        self.channel.send_event(ContainerEvent(instance="a"))
        [result] = self.sent()
        assert isinstance(result, Result)
        self.assertFalse(result.HasField("id"))
        self.assertEqual(ContainerEvent.FromString(result.events[0]).instance, "a")

    def test_failing_callback_does_not_end_the_link(self) -> None:
        def fail(event: bytes) -> None:
            raise ZeroDivisionError

        self.channel.on_event = fail
        self.channel.dataReceived(encode_event(b"1"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsNone(self.channel.closed)

    def test_without_a_callback_events_are_dropped(self) -> None:
        self.channel.on_event = None
        self.channel.dataReceived(encode_event(b"1"))
        self.assertIsNone(self.channel.closed)

    def test_a_response_frame_that_is_none_ends_the_link(self) -> None:
        call = self.channel.call("m", Void(), Void)
        self.channel.dataReceived(frame(RESPONSE, b"\xff\xff"))
        self.assertIn("cannot be parsed", str(self.failureResultOf(call, ChannelClosed).value))
        self.assertTrue(self.transport.disconnecting)


class ServeTests(Base):
    def test_synchronous_handlers_are_answered_with_one_write(self) -> None:
        self.dispatcher.register("echo", ClipboardData, lambda request, peer: request)
        data = b"".join(
            self.invoke(call_id, "echo", ClipboardData(text=str(call_id)).SerializeToString())
            for call_id in range(50)
        )
        self.channel.dataReceived(data)
        self.assertEqual(self.transport.writes, 1)
        results = self.sent()
        self.assertEqual([r.id for r in results], list(range(50)))
        self.assertEqual(ClipboardData.FromString(results[7].response).text, "7")  # type: ignore[union-attr]

    def test_handlers_may_be_asynchronous(self) -> None:
        waiting: Deferred[Void] = Deferred()
        self.dispatcher.register("wait", Void, lambda request, peer: waiting)
        self.dispatcher.register("now", Void, lambda request, peer: succeed(None))

        async def coroutine(request: Void, peer: Peer) -> ClipboardData:
            await waiting
            return ClipboardData(text="after")

        self.dispatcher.register("coroutine", Void, coroutine)
        self.channel.dataReceived(
            self.invoke(1, "wait") + self.invoke(2, "now") + self.invoke(3, "coroutine")
        )
        self.assertEqual([r.id for r in self.sent()], [2])
        waiting.callback(Void())
        self.assertEqual(sorted(r.id for r in self.sent()), [1, 3])
        self.assertEqual(self.dispatcher.methods, ["coroutine", "now", "wait"])

    def test_unknown_method(self) -> None:
        self.channel.dataReceived(self.invoke(9, "fly"))
        answer = self.answer_of(9)
        self.assertIn("no method 'fly'", answer.error)
        self.assertEqual(
            (answer.structured_error.domain, answer.structured_error.code),
            (Domain.RPC, RpcCode.UNKNOWN_METHOD),
        )

    def test_bad_parameters(self) -> None:
        self.dispatcher.register("start", StartContainer, lambda request, peer: None)
        for parameters, word in ((b"\xff\xff", "cannot be parsed"), (b"", "required configuration")):
            self.channel.dataReceived(self.invoke(9, "start", parameters))
            answer = self.answer_of(9)
            self.assertIn(word, answer.error)
            self.assertEqual(answer.structured_error.code, RpcCode.BAD_PARAMETERS)

    def test_text_that_is_no_text_is_a_bad_parameter(self) -> None:
        self.dispatcher.register("set", ClipboardData, lambda request, peer: None)
        self.dispatcher.register("start", StartContainer, lambda request, peer: None)
        nested = StartContainer(
            configuration=Configuration(extra_properties=["a=b", "c=XX"])
        ).SerializeToString()
        for method, parameters in (
            ("set", b"\x0a\x02\xff\xfe"),
            ("start", nested.replace(b"XX", b"\xff\xfe")),
        ):
            self.channel.dataReceived(self.invoke(9, method, parameters))
            answer = self.answer_of(9)
            self.assertIn("not UTF-8", answer.error)
            self.assertEqual(answer.structured_error.code, RpcCode.BAD_PARAMETERS)
        good = ClipboardData(text="häßlich 文").SerializeToString()
        self.channel.dataReceived(self.invoke(10, "set", good))
        self.assertEqual(self.answer_of(10), Void())
        self.channel.dataReceived(self.invoke(11, "XX").replace(b"XX", b"\xff\xfe"))
        self.assertIn("no method", self.answer_of(11).error)

    def test_wrong_version(self) -> None:
        self.dispatcher.register("m", Void, lambda request, peer: None)
        self.channel.dataReceived(self.invoke(9, "m", version=2))
        self.assertEqual(self.answer_of(9).structured_error.code, RpcCode.WRONG_VERSION)
        self.channel.dataReceived(frame(INVOCATION, b"\x08\x07\x12\x01m\x1a\x00"))
        self.assertIn("version 0", self.answer_of(7).error)

    def test_invocation_that_cannot_be_parsed_is_answered_by_its_id(self) -> None:
        self.channel.dataReceived(frame(INVOCATION, b"\x08\x07\xff\xff"))
        self.assertEqual(self.answer_of(7).structured_error.code, RpcCode.BAD_PARAMETERS)
        self.assertFalse(self.transport.disconnecting)

    def test_invocation_without_a_usable_id_ends_the_link(self) -> None:
        self.channel.dataReceived(frame(INVOCATION, b"\xff\xff"))
        self.assertTrue(self.transport.disconnecting)
        self.assertIn("without a usable id", str(self.channel.closed))

    def test_oversize_invocation_is_answered_and_the_link_goes_on(self) -> None:
        self.make(max_payload=100)
        self.dispatcher.register("m", Void, lambda request, peer: None)
        data = self.invoke(300, "m", bytes(1000))
        self.channel.dataReceived(data[:500])
        self.assertEqual(self.answer_of(300).structured_error.code, RpcCode.TOO_BIG)
        self.channel.dataReceived(data[500:] + self.invoke(301, "m"))
        self.assertEqual([r.id for r in self.sent()], [301])

    def test_oversize_answer_becomes_an_error(self) -> None:
        self.dispatcher.register("m", Void, lambda request, peer: ClipboardData(text="x" * (1 << 24)))
        self.channel.dataReceived(self.invoke(1, "m"))
        self.assertEqual(self.answer_of(1).structured_error.code, RpcCode.TOO_BIG)

    def test_unknown_frame_type_ends_the_link(self) -> None:
        call = self.channel.call("m", Void(), Void)
        self.channel.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
        self.assertIn("type 32", str(self.failureResultOf(call, ChannelClosed).value))
        self.assertTrue(self.transport.disconnecting)
        self.channel.dataReceived(self.invoke(1, "m"))
        self.assertEqual(len(self.sent()), 1)  # the call alone

    def test_half_a_header_waits_but_not_for_ever(self) -> None:
        self.dispatcher.register("m", Void, lambda request, peer: None)
        data = self.invoke(1, "m")
        self.channel.dataReceived(data[:2])
        self.clock.advance(29)
        self.channel.dataReceived(data[2:])
        self.assertEqual([r.id for r in self.sent()], [1])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.channel.dataReceived(data + data[:2])
        self.clock.advance(20)
        self.channel.dataReceived(data[2:] + data[:1])  # progress: a new message has begun
        self.clock.advance(20)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(10)
        self.assertTrue(self.transport.disconnecting)
        self.assertIn("did not complete a message within 30 s", str(self.channel.closed))

    def test_handler_errors_reach_the_caller(self) -> None:
        def refuse(request: Void, peer: Peer) -> None:
            raise ContainerError("no image", "get one", code="ANBOX-C012")

        def fail(request: Void, peer: Peer) -> None:
            raise ZeroDivisionError("surprise")

        def deny(request: Void, peer: Peer) -> None:
            raise PermissionRefused("not yours")

        self.dispatcher.register("refuse", Void, refuse)
        self.dispatcher.register("fail", Void, fail)
        self.dispatcher.register("deny", Void, deny)
        self.channel.dataReceived(self.invoke(1, "refuse"))
        answer = self.answer_of(1)
        self.assertEqual(answer.error, "ANBOX-C012: no image (get one)")
        structured = answer.structured_error
        self.assertEqual((structured.domain, structured.code), (Domain.CONTAINER, 12))
        self.assertEqual((structured.cause, structured.cure), ("no image", "get one"))
        self.channel.dataReceived(self.invoke(2, "fail"))
        answer = self.answer_of(2)
        self.assertEqual(answer.error, "Error processing request: ZeroDivisionError: surprise")
        self.assertEqual(answer.structured_error.code, RpcCode.INTERNAL)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.channel.dataReceived(self.invoke(3, "deny"))
        self.assertEqual(self.answer_of(3).structured_error.exit_code, ExitCode.REFUSED)

    def test_handler_that_returns_no_message(self) -> None:
        wrong: Any = lambda request, peer: "text"  # noqa: E731
        self.dispatcher.register("m", Void, wrong)
        later: Any = lambda request, peer: succeed("text")  # noqa: E731
        self.dispatcher.register("later", Void, later)
        self.channel.dataReceived(self.invoke(1, "m"))
        self.assertIn("returned no message", self.answer_of(1).error)
        self.channel.dataReceived(self.invoke(2, "later"))
        self.assertEqual(self.answer_of(2).structured_error.code, RpcCode.INTERNAL)
        self.assertEqual(len(self.flushLoggedErrors()), 2)

    def test_error_text_is_cut_and_never_unencodable(self) -> None:
        def fail(request: Void, peer: Peer) -> None:
            raise ContainerError("\udcff" + "x" * 20000)

        self.dispatcher.register("m", Void, fail)
        self.channel.dataReceived(self.invoke(1, "m"))
        self.assertTrue(self.answer_of(1).error.startswith("\\udcffxxx"))

    def test_methods_are_registered_once(self) -> None:
        self.dispatcher.register("m", Void, lambda request, peer: None)
        self.assertRaises(ValueError, self.dispatcher.register, "m", Void, lambda request, peer: None)

    def test_limit_of_served_calls(self) -> None:
        self.make(max_served=2)
        waiting: list[Deferred[None]] = []

        def wait(request: Void, peer: Peer) -> Deferred[None]:
            waiting.append(Deferred())
            return waiting[-1]

        self.dispatcher.register("wait", Void, wait)
        self.dispatcher.register("keep", Void, wait, cancel_on_disconnect=False)
        self.channel.dataReceived(self.invoke(1, "wait") + self.invoke(2, "keep") + self.invoke(3, "wait"))
        self.assertEqual(self.answer_of(3).structured_error.code, RpcCode.TOO_MANY_CALLS)
        waiting[0].callback(None)
        self.assertEqual([r.id for r in self.sent()], [1])
        self.channel.dataReceived(self.invoke(4, "wait"))
        self.assertEqual(self.sent(), [])

    def test_disconnect_cancels_handlers_but_those_that_must_go_on(self) -> None:
        cancelled: list[str] = []
        wait: Deferred[None] = Deferred(lambda _: cancelled.append("wait"))
        keep: Deferred[None] = Deferred(lambda _: cancelled.append("keep"))
        self.dispatcher.register("wait", Void, lambda request, peer: wait)
        self.dispatcher.register("keep", Void, lambda request, peer: keep, cancel_on_disconnect=False)
        self.channel.dataReceived(self.invoke(1, "wait") + self.invoke(2, "keep"))
        self.lose()
        self.assertEqual(cancelled, ["wait"])
        keep.callback(None)  # its answer goes nowhere, without an error
        self.assertEqual(self.sent(), [])

    def test_reentered_by_bytes_within_a_handler_keeps_the_order(self) -> None:
        seen: list[str] = []

        def first(request: Void, peer: Peer) -> None:
            self.channel.dataReceived(self.invoke(3, "other"))
            seen.append("first")

        self.dispatcher.register("first", Void, first)
        self.dispatcher.register("other", Void, lambda request, peer: seen.append("other"))
        self.channel.dataReceived(self.invoke(1, "first") + self.invoke(2, "other"))
        self.assertEqual(seen, ["first", "other", "other"])
        self.assertEqual([r.id for r in self.sent()], [1, 2, 3])

    def test_handler_that_closes_the_link_is_still_answered(self) -> None:
        def close(request: Void, peer: Peer) -> None:
            self.channel.close("asked to")

        self.dispatcher.register("close", Void, close)
        self.dispatcher.register("never", Void, lambda request, peer: self.fail("was called"))
        self.channel.dataReceived(self.invoke(1, "close") + self.invoke(2, "never"))
        self.assertEqual([r.id for r in self.sent()], [1])
        self.assertTrue(self.transport.disconnecting)

    def test_peer_tells_disconnect_once(self) -> None:
        calls: list[str] = []
        peers: list[Peer] = []
        self.dispatcher.register("m", Void, lambda request, peer: peers.append(peer))
        self.channel.dataReceived(self.invoke(1, "m"))
        peer = peers[0]
        self.assertIn("the peer", repr(peer))
        peer.on_disconnect(lambda: calls.append("kept"))
        peer.on_disconnect(lambda: 1 / 0)
        remove = peer.on_disconnect(lambda: calls.append("removed"))
        remove()
        self.lose()
        self.assertEqual(calls, ["kept"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        peer.on_disconnect(lambda: calls.append("late"))
        self.assertEqual(calls, ["kept", "late"])
        peer.send_event(Void())  # goes nowhere
        self.failureResultOf(peer.call("m", Void(), Void), ChannelClosed)


class CloseTests(Base):
    def test_close_flushes_then_tells_each_waiter(self) -> None:
        call = self.channel.call("m", Void(), Void)
        first, second = self.channel.close("enough"), self.channel.when_closed()
        dropped = self.channel.when_closed()
        dropped.addErrback(lambda _: None)
        dropped.cancel()
        self.assertTrue(self.transport.disconnecting)
        self.lose()
        self.assertIn("enough", str(self.failureResultOf(call, ChannelClosed).value))
        self.assertIs(self.successResultOf(first), self.successResultOf(second))
        self.assertIn("enough", str(self.successResultOf(self.channel.close())))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_peer_that_does_not_take_the_rest_is_cut(self) -> None:
        self.channel.close()
        self.clock.advance(5)
        self.assertTrue(self.transport.aborted)

    def test_close_callback(self) -> None:
        told: list[ChannelClosed] = []
        self.channel.on_close = told.append
        self.lose()
        self.assertEqual(told, [self.channel.closed])
        self.assertIn("closed", repr(self.channel))

    def test_failing_close_callback_is_logged(self) -> None:
        self.channel.on_close = lambda _: 1 / 0
        done = self.channel.when_closed()
        self.lose()
        self.successResultOf(done)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_half_close_ends_calls_but_delivers_answers(self) -> None:
        self.assertTrue(verifyObject(IHalfCloseableProtocol, self.channel))
        self.dispatcher.register("m", Void, lambda request, peer: None)
        call = self.channel.call("ours", Void(), Void)
        self.sent()
        self.channel.dataReceived(self.invoke(1, "m"))
        self.channel.readConnectionLost()
        self.failureResultOf(call, ChannelClosed)
        self.assertEqual([r.id for r in self.sent()], [1])
        self.assertTrue(self.transport.disconnecting)
        self.channel.writeConnectionLost()
        self.lose()

    def test_slow_reader_is_cut_in_the_end(self) -> None:
        self.make(max_unread=1000)
        valve: Any = self.transport.producer
        self.assertTrue(verifyObject(IPushProducer, valve))
        self.channel.send_event(bytes(2000))
        valve.pauseProducing()
        self.channel.send_event(bytes(900))
        valve.resumeProducing()
        self.channel.send_event(bytes(900))
        valve.pauseProducing()
        self.channel.send_event(bytes(900))
        self.channel.call("m", ClipboardData(text="x" * 2000), Void).addErrback(lambda _: None)
        self.assertFalse(self.transport.aborted)
        self.channel.send_event(bytes(900))
        self.assertTrue(self.transport.aborted)
        valve.stopProducing()
        self.lose(ConnectionLost())
        self.assertIn("unread", str(self.channel.closed))


class MemoryTests(SynchronousTestCase):
    def test_a_link_does_not_keep_what_it_has_carried(self) -> None:
        dispatcher = Dispatcher()
        dispatcher.register("echo", ClipboardData, lambda request, peer: request)
        clock = Clock()
        client = Channel(clock)
        RpcLink(client, Channel(clock, dispatcher=dispatcher))
        message = ClipboardData(text="x" * 4000)

        def resident() -> int:
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()

        def calls(count: int) -> None:
            for _ in range(count):
                self.successResultOf(client.call("echo", message, ClipboardData))

        calls(500)
        before = resident()
        calls(8000)  # 64 MB went over the link
        self.assertLess(resident() - before, 16_000_000)


class FactoryTests(SynchronousTestCase):
    def test_it_counts_limits_and_closes(self) -> None:
        made: list[Channel] = []
        factory = RpcFactory(Clock(), Dispatcher(), max_channels=1, on_channel=made.append)
        self.assertTrue(verifyObject(IConnectionCreator, factory))
        self.assertTrue(verifyObject(IProtocolFactory, factory))
        channel = factory.buildProtocol(None)
        assert channel is not None
        self.assertEqual((made, factory.channels), ([channel], {channel}))
        self.assertIsNone(factory.buildProtocol(None))
        transport = Transport()
        channel.makeConnection(transport)
        self.assertIn("192.168.1.1", channel.name)
        done = factory.close_all()
        self.assertNoResult(done)
        channel.connectionLost(Failure(ConnectionDone()))
        self.successResultOf(done)
        self.assertEqual(factory.channels, set())
        self.assertIsNotNone(factory.buildProtocol(None))
