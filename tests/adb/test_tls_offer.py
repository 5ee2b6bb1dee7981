"""A host that takes the offer of TLS without saying so, as adb 36 does on a busy machine."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb import Banner, _wire
from anbox_tw.adb import _events as ev
from anbox_tw.adb._state import Connection, Role

CLIENT_HELLO = bytes.fromhex("16030100ae010000aa0303")


class TlsOfferTests(SynchronousTestCase):
    def offered(self) -> Connection:
        host = Connection(Role.HOST, Banner("host"))
        host.start()
        device = Connection(Role.DEVICE, Banner("device"))
        device.receive_data(b"".join(bytes(piece) for piece in host.data_to_send()))
        self.assertIsInstance(device.next_event(), ev.PeerGreeted)
        device.offer_tls()
        return device

    def assert_tls(self, device: Connection) -> None:
        event = device.next_event()
        assert isinstance(event, ev.TlsRequested)
        self.assertEqual(event.rest, CLIENT_HELLO)
        self.assertIsNone(device.next_event())

    def test_with_the_answer(self) -> None:
        device = self.offered()
        device.receive_data(_wire.encode_header(_wire.STLS, _wire.STLS_VERSION, 0) + CLIENT_HELLO)
        self.assert_tls(device)

    def test_without_it(self) -> None:
        device = self.offered()
        device.receive_data(CLIENT_HELLO)
        self.assert_tls(device)

    def test_only_where_tls_was_offered(self) -> None:
        device = Connection(Role.DEVICE, Banner("device"))
        device.receive_data(CLIENT_HELLO + bytes(24))
        self.assertIsInstance(device.next_event(), ev.ProtocolFailed)
