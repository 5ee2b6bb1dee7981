"""The command line's link to a session's control socket."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from typing import Any

from google.protobuf.json_format import MessageToDict
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError

from anbox_tw.cli._instance import Instance
from anbox_tw.cli._run import pause
from anbox_tw.errors import AnboxError, NotRunning, PermissionRefused, TimedOut
from anbox_tw.rpc import Channel, ChannelClosed, connect
from anbox_tw.rpc._pb import anbox_session_pb2 as pb

__all__ = ["LEVELS", "ControlLink", "as_dict", "level_of", "open_control"]

CALL_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5
RETRY_DELAY_S = 0.1

LEVELS = ("live", "ready", "booted")


class ControlLink:
    """A connection to one session.

    Attributes:
        channel: the RPC channel beneath.
    """

    channel: Channel

    def __init__(self, on_event: Callable[[pb.SessionEvent], object] | None = None) -> None:
        self._on_event = on_event
        self._waiting: list[Deferred[None]] = []

    def handle_event(self, data: bytes) -> None:
        """Take an event from the channel."""
        if self._on_event is not None:
            self._on_event(pb.SessionEvent.FromString(data))
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(None)

    def next_event(self) -> Deferred[None]:
        """A Deferred of the caller's own that fires at the next event after ``watch``."""
        deferred: Deferred[None] = Deferred(lambda d: self._waiting.remove(d) if d in self._waiting else None)
        self._waiting.append(deferred)
        return deferred

    async def info(self) -> pb.SessionInfo:
        """What the session is now.

        Raises:
            anbox_tw.errors.AnboxError: it does not answer, or refuses.
        """
        answer: pb.SessionInfo = await self.channel.call(
            "session_info", pb.SessionInfoRequest(), pb.SessionInfo, timeout=CALL_TIMEOUT_S
        )
        return answer

    async def watch(self) -> pb.SessionInfo:
        """As ``info``, and events from now on."""
        answer: pb.SessionInfo = await self.channel.call(
            "watch_session", pb.WatchSession(), pb.SessionInfo, timeout=CALL_TIMEOUT_S
        )
        return answer

    async def stop(self, reason: str) -> None:
        """Ask the session to end."""
        await self.channel.call(
            "stop_session", pb.StopSession(reason=reason), pb.Done, timeout=CALL_TIMEOUT_S
        )

    def closed(self) -> Deferred[ChannelClosed]:
        """Fires when the link is gone."""
        return self.channel.when_closed()

    async def close(self) -> None:
        """Close the link."""
        await self.channel.close("the command is done")


async def open_control(
    reactor: Any,
    where: Instance,
    *,
    wait_until: float | None = None,
    on_event: Callable[[pb.SessionEvent], object] | None = None,
) -> ControlLink:
    """Connect to the session of an instance.

    Args:
        reactor: connects.
        where: which instance.
        wait_until: keep trying until this reactor time; ``None`` tries once.
        on_event: called with each event after ``watch``.

    Raises:
        anbox_tw.errors.NotRunning: nobody listens there.
        anbox_tw.errors.TimedOut: nobody did until ``wait_until``.
        anbox_tw.errors.PermissionRefused: the session belongs to another user.
    """

    link = ControlLink(on_event)
    while True:
        endpoint = UNIXClientEndpoint(reactor, str(where.control), timeout=CONNECT_TIMEOUT_S)
        try:
            link.channel = await connect(
                endpoint, reactor, on_event=link.handle_event, name=f"session {where.name}"
            )
            return link
        except (ConnectError, FileNotFoundError) as error:
            if getattr(error, "osError", None) in (errno.EACCES, errno.EPERM):
                raise PermissionRefused(
                    f"the session of instance '{where.name}' belongs to another user",
                    "run the command as that user",
                ) from error
            if wait_until is None:
                raise NotRunning(
                    f"instance '{where.name}' is not running (nobody listens at {where.control})",
                    f"start it with 'anbox up{where.option}'",
                ) from error
        left = wait_until - reactor.seconds()
        if left <= 0:
            raise TimedOut(
                f"instance '{where.name}' did not come up in time (nobody listens at {where.control})",
                f"start it with 'anbox up{where.option}', or see 'anbox logs{where.option}'",
            )
        await pause(reactor, min(RETRY_DELAY_S, left))


def level_of(info: pb.SessionInfo) -> str:
    """The highest level that a session has reached."""
    reached = [name for name in LEVELS if getattr(info, name)]
    return reached[-1] if reached else "starting"


def as_dict(info: pb.SessionInfo) -> dict[str, Any]:
    """A session's description for ``--json``: every field there is, JSON text unpacked."""
    told: dict[str, Any] = MessageToDict(
        info, preserving_proto_field_name=True, always_print_fields_with_no_presence=False
    )
    told.pop("error", None)
    told.pop("structured_error", None)
    told["sockets"] = {socket.name: socket.path for socket in info.sockets}
    for part in (told, told.get("container", {})):
        if isinstance(part.get("details"), str):
            try:
                part["details"] = json.loads(part["details"])
            except ValueError:
                part.pop("details")
    for name in LEVELS:
        told[name] = bool(getattr(info, name))
    return {"instance": info.instance, "level": level_of(info), **told}


def describe(error: BaseException) -> str:
    """An error in one line, with its cure."""
    return str(error) if isinstance(error, AnboxError) else f"{type(error).__name__}: {error}"
