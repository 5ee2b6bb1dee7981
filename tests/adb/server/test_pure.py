"""Framing, targets and messages of the adb server: no sockets."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb.server import _proto
from anbox_tw.adb.server._framing import BadRequest, RequestReader, body, fail, okay
from anbox_tw.adb.server._targets import (
    ANY,
    Kind,
    Target,
    matches,
    parse_host_request,
    parse_transport_request,
    split_serial,
)
from anbox_tw.adb.server.errors import RequestFailed
from anbox_tw.adb.server.links import split_address
from anbox_tw.adb.server.specs import HostSpec, parse_spec

quick = settings(derandomize=True, deadline=None, max_examples=200)


class FramingTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        self.assertEqual(okay("0029"), b"OKAY00040029")
        self.assertEqual(okay(), b"OKAY")
        self.assertEqual(okay(""), b"OKAY0000")
        self.assertEqual(fail("unknown host service 'nosuch'"), b"FAIL001dunknown host service 'nosuch'")
        self.assertEqual(fail("closed"), b"FAIL0006closed")

    @quick
    @given(st.text(min_size=1, max_size=50), st.binary(max_size=20), st.integers(0, 100))
    def test_any_cut(self, request: str, rest: bytes, cut: int) -> None:
        data = body(request) + rest
        whole = len(body(request))
        reader = RequestReader()
        cut = min(cut, whole - 1)
        self.assertIsNone(reader.feed(data[:cut]))
        self.assertEqual(reader.feed(data[cut:]), request)
        self.assertEqual(reader.rest, rest)

    def test_byte_by_byte(self) -> None:
        reader = RequestReader()
        for byte in b"000Chost:versio":
            self.assertIsNone(reader.feed(bytes([byte])))
        self.assertEqual(reader.feed(b"n"), "host:version")

    def test_garbage(self) -> None:
        for data in (b"0000", b"zzzz", b"00g", b"\xff", b"-001x"):
            with self.assertRaises(BadRequest):
                RequestReader().feed(data)


class TargetTests(SynchronousTestCase):
    def test_prefixes(self) -> None:
        self.assertEqual(parse_host_request("host:version"), (ANY, "version"))
        self.assertEqual(parse_host_request("host-usb:features"), (Target(Kind.USB), "features"))
        self.assertEqual(parse_host_request("host-local:features"), (Target(Kind.LOCAL), "features"))
        self.assertEqual(
            parse_host_request("host-transport-id:7:features"), (Target(Kind.ID, transport_id=7), "features")
        )
        self.assertIsNone(parse_host_request("shell:ls"))
        for wrong in (
            "host-transport-id:7",
            "host-transport-id:x:features",
            "host-serial:abc",
            "host-serial:",
        ):
            with self.assertRaises(BadRequest):
                parse_host_request(wrong)

    def test_serials_with_colons(self) -> None:
        for serial in (
            "emulator-5554",
            "localhost:5555",
            "192.168.1.2",
            "[fe80::1]:5555",
            "[::1]",
            "tcp:host:1234",
            "usb:1-1.2",
            "product:sdk",
            "model:Pixel_8",
            "device:husky",
            "localfilesystem:/run/x",
            "vsock:3:5555",
        ):
            self.assertEqual(split_serial(f"{serial}:get-state"), (serial, "get-state"))
            self.assertEqual(split_serial(f"{serial}:forward:tcp:1;tcp:2"), (serial, "forward:tcp:1;tcp:2"))

    def test_switches(self) -> None:
        self.assertEqual(parse_transport_request("tport:any"), (ANY, True))
        self.assertEqual(parse_transport_request("tport:serial:a:1"), (Target(Kind.SERIAL, "a:1"), True))
        self.assertEqual(parse_transport_request("transport:a"), (Target(Kind.SERIAL, "a"), False))
        self.assertEqual(parse_transport_request("transport-id:3"), (Target(Kind.ID, transport_id=3), False))
        self.assertEqual(parse_transport_request("transport-local"), (Target(Kind.LOCAL), False))
        for other in ("features", "tport:nowhere", "transport-nowhere"):
            self.assertIsNone(parse_transport_request(other))

    def test_what_a_serial_means(self) -> None:
        device = {
            "serial": "localhost:5555",
            "devpath": "",
            "product": "p",
            "model": "A b",
            "device": "d",
            "is_tcp": True,
        }
        for wanted in (
            "localhost:5555",
            "localhost",
            "tcp:localhost",
            "product:p",
            "model:A_b",
            "device:d",
            "p",
            "d",
        ):
            self.assertTrue(matches(wanted, **device), wanted)  # type: ignore[arg-type]
        for wanted in ("", "localhost:5556", "local", "product:x", "model:A b"):
            self.assertFalse(matches(wanted, **device), wanted)  # type: ignore[arg-type]

    @quick
    @given(st.text(max_size=40))
    def test_no_text_does_harm(self, text: str) -> None:
        for prefix in ("", "host:", "host-serial:", "host-transport-id:"):
            try:
                parse_host_request(prefix + text)
            except BadRequest:
                continue
        parse_transport_request(text)
        for parse in (split_address, parse_spec):
            try:
                parse(text)
            except RequestFailed:
                continue

    def test_addresses(self) -> None:
        self.assertEqual(split_address("h"), ("h", 5555))
        self.assertEqual(split_address("h:1"), ("h", 1))
        self.assertEqual(split_address("[::1]:7"), ("::1", 7))
        self.assertEqual(split_address("fe80::1"), ("fe80::1", 5555))
        for wrong in ("", ":1", "h:0", "h:65536", "h:x", "[::1", "[::1]x"):
            with self.assertRaises(RequestFailed):
                split_address(wrong)

    def test_specs(self) -> None:
        self.assertEqual(parse_spec("tcp:0"), HostSpec("tcp"))
        self.assertEqual(parse_spec("tcp:[::1]:7"), HostSpec("tcp", "::1", 7))
        self.assertEqual(parse_spec("localabstract:a"), HostSpec("abstract", path="a"))
        self.assertEqual(parse_spec("localfilesystem:/a"), HostSpec("path", path="/a"))
        for wrong in (
            "tcp:",
            "tcp:x",
            "tcp:70000",
            "localabstract:",
            "dev:/x",
            "",
            "localfilesystem:/" + "a" * 200,
        ):
            with self.assertRaises(RequestFailed):
                parse_spec(wrong)


class ProtoTests(SynchronousTestCase):
    def test_device_list(self) -> None:
        entry: _proto.DeviceEntry = {"serial": "e", "state": 8, "connection_type": 2, "transport_id": 300}
        self.assertEqual(_proto.device_list([entry]), bytes.fromhex("0a0a 0a0165 1008 3802 50ac02"))
        self.assertEqual(
            _proto.device_list_text([entry]),
            'device {\n  serial: "e"\n  state: DEVICE\n  connection_type: SOCKET\n  transport_id: 300\n}\n',
        )
        self.assertEqual(_proto.device_list([]), b"")
