"""The guest's RIL against a session: in this process through its socket, and in a container through adb."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device import CallState, Registration
from anbox_tw.errors import NotRunning, PeerError, TimedOut
from anbox_tw.guest.hal import QemuPipe
from anbox_tw.guest.ril import AtChannel, Ril, Unsolicited
from anbox_tw.guest.ril_command import main
from tests.guest.test_whole import WholeCase
from tests.session.guest import until
from tests.session.test_hardware import HardwareCase

T = TypeVar("T")


class ChannelTests(SynchronousTestCase):
    """The channel against a modem that is written here."""

    def setUp(self) -> None:
        directory = tempfile.mkdtemp(prefix="ar-")
        self.addCleanup(shutil.rmtree, directory)
        self.path = f"{directory}/p"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.addCleanup(self.listener.close)

    def channel(self, says: bytes, timeout: float = 30.0) -> AtChannel:
        """A channel to a modem that says this at once, and then keeps silent."""
        channel = AtChannel(QemuPipe(self.path, "qemud:gsm"), timeout)
        self.addCleanup(channel.close)
        self.modem, _ = self.listener.accept()
        self.addCleanup(self.modem.close)
        self.modem.sendall(says)
        return channel

    def test_answers_are_told_from_news(self) -> None:
        channel = self.channel(
            b"RING\r\r\n+CREG: 1,1\r+CMT: 0\r\n00AA\r\n+CSQ: 7,99\rOK\r310260\rOK\r+CME ERROR: 30\r"
        )
        reply = channel.command("AT+CSQ", "+CSQ:")
        self.assertEqual((reply.lines, reply.success, reply.values()), (("+CSQ: 7,99",), True, ["7", "99"]))
        self.assertEqual(channel.command("AT+CIMI", numeric=True).lines, ("310260",))
        reply = channel.command("AT+COPS?", "+COPS:")
        self.assertEqual((reply.success, reply.final), (False, "+CME ERROR: 30"))
        self.assertRaises(PeerError, reply.values)
        self.assertEqual(
            [channel.next_unsolicited(1) for _ in range(3)],
            [Unsolicited("RING"), Unsolicited("+CREG: 1,1"), Unsolicited("+CMT: 0", "00AA")],
        )

    def test_prompts_with_and_without_an_end(self) -> None:
        for prompt in (b"> \r", b"> "):
            channel = self.channel(prompt)
            done = threading.Thread(target=self.answer_pdu)
            done.start()
            self.assertTrue(channel.command("AT+CMGS=1", "+CMGS:", pdu="00").success)
            done.join()

    def answer_pdu(self) -> None:
        said = b""
        while b"\x1a" not in said:
            said += self.modem.recv(100)
        self.modem.sendall(b"+CMGS: 0\rOK\r")

    def test_silence_the_end_and_too_much(self) -> None:
        self.assertRaises(TimedOut, self.channel(b"+CSQ", 0.01).command, "AT+CSQ")
        channel = self.channel(b"x")
        self.modem.close()
        self.assertRaises(NotRunning, channel.command, "AT")
        self.assertRaises(PeerError, self.channel(b"x" * 20_000).command, "AT")


class RilTests(HardwareCase):
    """Blocking clients in threads, the session in the reactor."""

    async def blocking(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        return await deferToThread(function, *arguments, **named)

    async def ril(self) -> Ril:
        await self.begin()
        self.device = self.session.device
        ril = await self.blocking(Ril, self.session.paths.qemu_pipe)
        self.addCleanup(ril.close)
        return ril

    async def test_initialisation_and_questions(self) -> None:
        ril = await self.ril()
        self.assertRegex(ril.network_time, r"^\d\d/\d\d/\d\d:\d\d:\d\d:\d\d[+-]\d+:[01]:.+")
        self.assertEqual(await self.blocking(ril.operator), ("Android", "Android", "310260"))
        self.assertEqual(await self.blocking(ril.signal), (7, 99))
        self.assertEqual(await self.blocking(ril.sim_status), "READY")
        self.device.phone.update(voice=Registration.ROAMING, rssi=20, ber=1)
        await self.blocking(ril.wait_for, "registration")
        self.assertEqual(await self.blocking(ril.registration), "roaming")
        self.assertEqual(await self.blocking(ril.data_registration), "home")
        self.assertEqual(await self.blocking(ril.signal), (20, 1))
        self.assertEqual(await self.blocking(ril.start_data, "internet"), ["10.0.2.15"])

    async def test_calls_both_ways(self) -> None:
        ril = await self.ril()
        self.device.calls.update(alert_after=0.01, answer_after=0.01)
        self.assertTrue(await self.blocking(ril.dial, "5551234"))
        while (await self.blocking(ril.calls))[0].state != "active":
            await self.blocking(ril.wait_for, "ring")
        self.device.calls.ring("+491234")
        await self.blocking(ril.wait_for, "ring")
        (_, second) = await self.blocking(ril.calls)
        self.assertEqual((second.number, second.state, second.incoming), ("+491234", "incoming", True))
        await self.blocking(ril.answer)
        self.assertEqual([call.state.value for call in self.device.calls], ["held", "active"])
        await self.blocking(ril.swap)
        await self.blocking(ril.hang_up, 1)
        self.assertEqual([call.state for call in self.device.calls], [CallState.HELD])
        self.device.calls.cancel("+491234")
        self.device.calls.ring("1")
        await self.blocking(ril.reject)
        self.assertEqual(await self.blocking(ril.calls), [])

    async def test_messages_both_ways(self) -> None:
        ril = await self.ril()
        text = "Größe: 5 € " * 40
        self.device.messages.deliver("+4917", text)
        self.device.messages.deliver("123", "日本")
        first: Any = await self.blocking(ril.wait_for, "sms")
        second: Any = await self.blocking(ril.wait_for, "sms")
        self.assertEqual((first.number, first.text), ("+4917", text))
        self.assertEqual((second.number, second.text), ("123", "日本"))
        await until(lambda: {m.status for m in self.device.messages.state.incoming} == {"acknowledged"})
        self.assertEqual(await self.blocking(ril.send_sms, "+4918", text, status_report=True), 4)
        report: Any = await self.blocking(ril.wait_for, "report")
        self.assertEqual((report.receiver, report.status), ("+4918", 0))
        sent = self.device.messages.state.outgoing[-1]
        self.assertEqual((sent.number, sent.text, sent.parts), ("+4918", text, 4))
        self.device.messages.deliver_pdu("00FF")
        self.device.messages.deliver("1", "after what cannot be read")
        third: Any = await self.blocking(ril.wait_for, "sms")
        self.assertEqual(third.text, "after what cannot be read")
        await until(lambda: self.device.messages.state.incoming[-1].status == "acknowledged")
        self.assertEqual(self.device.messages.state.incoming[-2].status, "refused")

    async def test_ussd(self) -> None:
        ril = await self.ril()
        self.device.phone.observe(
            lambda change: self.device.phone.reply_ussd(f"{change.value}?") if change.kind == "ussd" else None
        )
        self.assertTrue(await self.blocking(ril.send_ussd, "*100#"))
        self.assertEqual(await self.blocking(ril.wait_for, "ussd"), "*100#?")

    async def command(self, *arguments: str) -> tuple[list[Any], int]:
        def run() -> tuple[str, int]:
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
                code = main(self.session.paths.qemu_pipe, arguments)
            return out.getvalue(), code

        printed, code = await self.blocking(run)
        return [json.loads(line) for line in printed.splitlines()], code

    async def test_the_command(self) -> None:
        await self.begin()
        device = self.device = self.session.device
        device.calls.update(alert_after=0.01, answer_after=0.01)
        (status,), _ = await self.command("status")
        self.assertEqual((status["sim"], status["operator"], status["voice"]), ("READY", "Android", "home"))
        lines, code = await self.command("call", "5551234")
        self.assertEqual((lines[-1]["state"], code), ("active", 0))
        self.assertEqual((await self.command("calls"))[0][0]["number"], "5551234")
        self.assertEqual((await self.command("hangup"))[0], [{"number": "5551234", "state": "ended"}])
        device.calls.update(answer_after=None)
        calling: Deferred[Any] = Deferred.fromCoroutine(self.command("call", "666"))
        await until(lambda: any(c.state is CallState.ALERTING for c in device.calls))
        device.calls.busy("666")
        lines, code = await calling
        self.assertEqual((lines[-1]["state"], code), ("ended", 1))
        for command, state in (("answer", "active"), ("reject", "rejected")):
            device.calls.ring("777")
            self.assertEqual((await self.command(command))[0], [{"number": "777", "state": state}])
            await self.command("hangup")
        device.messages.deliver("+49", "for the one who reads")
        self.assertEqual(
            (await self.command("sms", "--report", "123", "hö"))[0],
            [{"number": "123", "parts": 1}, {"number": "123", "status": 0}],
        )
        ((message,), _) = await self.command("read")
        self.assertEqual((message["number"], message["text"]), ("+49", "for the one who reads"))
        self.assertEqual((await self.command("--timeout", "0.01", "read"))[1], 4)
        self.assertEqual((await self.command("data", "internet"))[0], [{"addresses": ["10.0.2.15"]}])
        device.phone.observe(
            lambda change: device.phone.reply_ussd("12 EUR") if change.kind == "ussd" else None
        )
        self.assertEqual((await self.command("ussd", "*100#"))[0], [{"answer": "12 EUR"}])
        device.phone.update(selection=2)
        self.assertEqual((await self.command("ussd", "*100#"))[1], 5)
        device.phone.update(selection=0, radio=False)
        self.assertEqual((await self.command("status"))[0][0]["voice"], "home")  # it switches the radio on
        self.assertTrue(device.phone.state.radio)


class ContainerTests(WholeCase):
    """A call and a message in both directions, from inside a container of the process backend."""

    async def guest(self, line: str) -> list[Any]:
        said, code = await self.adb.run("shell", f"ril {line}")
        self.assertEqual(code, 0, said)
        return [json.loads(each) for each in said.splitlines()]

    async def test_phone_in_a_container(self) -> None:
        manager = self.start_manager()
        session = self.start_session()
        await self.adb.run("start-server")
        try:
            await until(lambda: session.state.levels.ready and session.state.levels.booted, 30)
        except AssertionError:
            self.fail(f"{session.state.waiting_for}\n{manager.output.decode()}")
        session.device.calls.update(alert_after=0.01, answer_after=0.01)
        self.assertEqual((await self.guest("call 5551234"))[-1], {"number": "5551234", "state": "active"})
        await self.guest("hangup")
        session.device.calls.ring("+491234")
        self.assertEqual(await self.guest("answer"), [{"number": "+491234", "state": "active"}])
        session.device.messages.deliver("+4917", "hinein €" * 30)
        (message,) = await self.guest("read")
        self.assertEqual((message["number"], message["text"]), ("+4917", "hinein €" * 30))
        self.assertEqual(session.device.messages.state.incoming[-1].status, "acknowledged")
        await self.guest("sms 5559876 'hinaus'")
        sent = session.device.messages.state.outgoing[-1]
        self.assertEqual((sent.number, sent.text), ("5559876", "hinaus"))
        self.assertTrue(os.path.exists(session.paths.qemu_pipe))
        await session.stopService()
        self.assertNotIn(b"Traceback", manager.output)
