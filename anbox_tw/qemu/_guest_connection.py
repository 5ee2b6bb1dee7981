"""What the connections of all pipe services share: one end for whatever a guest does wrong."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.errors import PeerError
from anbox_tw.network import abort_transport
from anbox_tw.qemu._flow import Flow, handle_little_at_once, keep_fresh, read_no_faster_than_answers_leave
from anbox_tw.qemu._framing import QemudDecoder, encode_frame

__all__ = ["MAX_COMMAND_BYTES", "FramedConnection", "GuestConnection"]

MAX_COMMAND_BYTES = 256
"""Of one command: the guest's HALs build theirs in buffers of at most 256 bytes."""

MAX_NOTES = 10
"""Of one connection's commands that make no sense, in the log."""


class GuestConnection(Protocol):
    """One guest at one service: reads no faster than its answers leave, and ends with a reason.

    Attributes:
        service: name, for the log.
        small: whether all that is said is short, so that little is read and queued in one turn of the reactor.
        reports: whether it is told of changes unasked, and should get them fresh.
        flow: whether the guest reads what it gets.
    """

    service = ""
    small = False
    reports = False
    _log = Logger()

    def __init__(self) -> None:
        self.flow: Flow | None = None
        self._on_lost: list[Callable[[], object]] = []
        self._ended = False
        self._notes = 0

    @property
    def blocked(self) -> bool:
        """Whether a report would only be queued: the guest has not read the former ones, or is gone."""
        return self._ended or self.flow is None or self.flow.blocked

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called when the connection is gone."""
        self._on_lost.append(callback)

    def connectionMade(self) -> None:
        if self.small:
            handle_little_at_once(self.transport)
        if self.reports:
            keep_fresh(self.transport)
        self.flow = read_no_faster_than_answers_leave(self.transport, self.caught_up)

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            self.guest_sent(data)
        except PeerError as error:
            self.end(error)

    def guest_sent(self, data: bytes) -> None:
        """Take the guest's next bytes.

        Raises:
            PeerError: they break the protocol; the connection ends with this as the reason.
        """
        raise NotImplementedError

    def caught_up(self) -> None:
        """The guest has read what was queued, after a while in which it was `blocked`."""

    def write(self, data: bytes) -> None:
        """Send, in one write; nothing after the end."""
        if not self._ended and self.transport is not None:
            self.transport.write(data)

    def note(self, what: str) -> None:
        """Log what could not be done, a few times: a guest must not fill the disk with it."""
        self._notes += 1
        if self._notes <= MAX_NOTES:
            self._log.info("{service}: {what}", service=self.service, what=what)
        if self._notes == MAX_NOTES:
            self._log.info(
                "{service}: what else this guest wants in vain is not logged", service=self.service
            )

    def ignored(self, command: bytes) -> None:
        """`note` a command that makes no sense."""
        self.note(f"ignored the command {command!r}")

    def end(self, why: object) -> None:
        """Close at once and say why."""
        if not self._ended:
            self._ended = True
            self._log.warn("{service}: a guest's connection is closed: {why}", service=self.service, why=why)
            abort_transport(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ended = True
        callbacks, self._on_lost = self._on_lost, []
        for callback in callbacks:
            callback()


class FramedConnection(GuestConnection):
    """The same for services whose messages have a length in front."""

    small = True
    max_frame_bytes = MAX_COMMAND_BYTES

    def __init__(self) -> None:
        super().__init__()
        self._frames = QemudDecoder(self.max_frame_bytes)

    def guest_sent(self, data: bytes) -> None:
        for frame in self._frames.receive_data(data):
            if self._ended:
                return
            # Some guests count a NUL into the frame.
            self.command(frame.rstrip(b"\0"))

    def command(self, command: bytes) -> None:
        """One message of the guest.

        Raises:
            PeerError: likewise.
        """
        raise NotImplementedError

    def send(self, *bodies: bytes) -> None:
        """Send frames in one write: a guest reads header and body with one ``read`` each."""
        self.write(b"".join(map(encode_frame, bodies)))
