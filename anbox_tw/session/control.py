"""The session's control socket: what the ``anbox`` command and other programs ask of a running session.

Calls and events are those of ``protocols/rpc/anbox_session.proto``. The socket lies in a directory that only its owner
enters; each caller's user is checked all the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from anbox_tw._version import __version__
from anbox_tw.errors import PermissionRefused
from anbox_tw.interfaces import IClipboard
from anbox_tw.rpc import Dispatcher, Peer, RpcFactory
from anbox_tw.rpc._pb import anbox_session_pb2 as pb
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Void
from anbox_tw.session.bridge import Rect
from anbox_tw.session.errors import BadRequest
from anbox_tw.session.forwards import Forward

if TYPE_CHECKING:
    from anbox_tw.session.service import SessionService

__all__ = ["SessionControl"]

STACKS = (0, 1, 2)
"""default, fullscreen, freeform"""


class SessionControl:
    """Answers the calls on the control socket.

    Args:
        session: what is asked about.
        clipboard: of host and guest.
        clock: for the links' timeouts.
        stop: called with a reason when a caller wants the session to end.

    Attributes:
        factory: serves the socket's connections.
    """

    _log = Logger()

    def __init__(
        self,
        session: SessionService,
        clipboard: IClipboard,
        clock: IReactorTime,
        stop: Callable[[str], object],
    ) -> None:
        self._session = session
        self._clipboard = clipboard
        self._clock = clock
        self._stop = stop
        self._watchers: dict[Peer, None] = {}
        self._allowed_uids = {0, os.geteuid()}
        dispatcher = Dispatcher()
        for name, request, handler in (
            ("session_info", pb.SessionInfoRequest, self._info),
            ("watch_session", pb.WatchSession, self._watch),
            ("stop_session", pb.StopSession, self._stop_session),
            ("launch", pb.Launch, self._launch),
            ("list_applications", pb.ListApplications, self._list_applications),
            ("get_clipboard", Void, self._get_clipboard),
            ("set_clipboard", pb.Clipboard, self._set_clipboard),
            ("add_forward", pb.AddForward, self._add_forward),
            ("remove_forward", pb.RemoveForward, self._remove_forward),
            ("list_forwards", pb.ListForwards, self._list_forwards),
            ("device", pb.DeviceRequest, self._device),
        ):
            dispatcher.register(name, request, self._checked(handler))
        self.factory = RpcFactory(clock, dispatcher)

    def tell(self, kind: str, name: str = "", detail: str = "") -> None:
        """Send an event to all who watch.

        Args:
            kind: ``level``, ``phase``, ``adb``, ``bridge``, ``applications``, ...
            name: what of that kind.
            detail: in words.
        """
        if not self._watchers:
            return
        event = pb.SessionEvent(kind=kind, name=name, detail=detail, timestamp=time.time(), info=self.info())
        for peer in list(self._watchers):
            peer.send_event(event)

    def info(self) -> pb.SessionInfo:
        """The session as it is now."""
        session = self._session
        state = session.state
        levels = state.levels
        container = pb.SessionInfo.Container(
            backend=session.container_info.get("backend", "") or session.request.backend,
            state=session.container_info.get("state", "") or state.phase.value,
            phase=session.container_info.get("phase", ""),
            failure=session.failure,
        )
        for field in ("pid", "address", "rootfs", "data_path", "details"):
            value = session.container_info.get(field)
            if value:
                setattr(container, field, value)
        return pb.SessionInfo(
            instance=session.paths.instance,
            serial=session.adb.serial,
            adb_port=session.adb.port,
            console_port=session.adb.port - 1 if session.adb.port else 0,
            live=levels.live,
            ready=levels.ready,
            booted=levels.booted,
            sockets=[pb.SessionInfo.Socket(name=name, path=path) for name, path in session.sockets().items()],
            container=container,
            pid=os.getpid(),
            version=__version__,
            started_at=session.started_at,
            waiting_for=state.waiting_for,
            details=json.dumps(session.details()),
        )

    def _checked(self, handler: Callable[[Any, Peer], Any]) -> Callable[[Any, Peer], Any]:
        def call(request: Any, peer: Peer) -> Any:
            credentials = peer.credentials
            if credentials is not None and credentials.uid not in self._allowed_uids:
                raise PermissionRefused(
                    f"this session belongs to uid {os.geteuid()}, and uid {credentials.uid} asks",
                    "run the command as the session's user",
                )
            return handler(request, peer)

        return call

    def _info(self, request: pb.SessionInfoRequest, peer: Peer) -> pb.SessionInfo:
        return self.info()

    def _watch(self, request: pb.WatchSession, peer: Peer) -> pb.SessionInfo:
        if peer not in self._watchers:
            self._watchers[peer] = None
            peer.on_disconnect(lambda: self._watchers.pop(peer, None))
        return self.info()

    def _stop_session(self, request: pb.StopSession, peer: Peer) -> pb.Done:
        who = f"pid {peer.credentials.pid}" if peer.credentials else peer.name
        reason = f"asked to by {who}{f': {request.reason}' if request.reason else ''}"
        self._log.info("The session stops, {reason}", reason=reason)
        # The answer leaves first.
        self._clock.callLater(0, self._stop, reason)
        return pb.Done()

    async def _launch(self, request: pb.Launch, peer: Peer) -> pb.Done:
        if not (request.package or request.component or request.action or request.uri):
            raise BadRequest("nothing to launch is named", "give a package, a component, an action or a uri")
        if request.stack not in STACKS:
            raise BadRequest(f"there is no stack {request.stack}", "0 is default, 1 fullscreen, 2 freeform")
        bounds = None
        if request.HasField("left") or request.HasField("right"):
            bounds = Rect(request.left, request.top, request.right, request.bottom)
        await self._session.launch(
            package=request.package,
            component=request.component,
            action=request.action,
            uri=request.uri,
            type=request.type,
            categories=tuple(request.categories),
            bounds=bounds,
            stack=request.stack,
        )
        return pb.Done()

    def _list_applications(self, request: pb.ListApplications, peer: Peer) -> pb.ApplicationList:
        return pb.ApplicationList(
            applications=[
                pb.ApplicationList.Application(name=app.name, package=app.package, component=app.component)
                for app in self._session.desktop.applications()
            ]
        )

    async def _get_clipboard(self, request: Void, peer: Peer) -> pb.Clipboard:
        return pb.Clipboard(text=await self._clipboard.get_text())

    async def _set_clipboard(self, request: pb.Clipboard, peer: Peer) -> pb.Done:
        await self._clipboard.set_text(request.text)
        return pb.Done()

    async def _device(self, request: pb.DeviceRequest, peer: Peer) -> pb.DeviceAnswer:
        try:
            arguments = json.loads(request.arguments or "{}")
        except ValueError as error:
            raise BadRequest(f"the arguments of {request.verb!r} are no JSON: {error}") from error
        if not isinstance(arguments, dict):
            raise BadRequest(f"the arguments of {request.verb!r} must be a JSON object")
        result = await self._session.verbs.run(request.verb, arguments)
        return pb.DeviceAnswer(result=json.dumps(result))

    def _add_forward(self, request: pb.AddForward, peer: Peer) -> pb.ForwardList:
        forward = self._session.forwards.add(
            request.listen, request.target, via=request.via or "auto", persistent=request.persistent
        )
        return pb.ForwardList(forwards=[self._forward(forward)])

    async def _remove_forward(self, request: pb.RemoveForward, peer: Peer) -> pb.ForwardList:
        forwards = self._session.forwards
        removed = await forwards.remove_all() if request.all else [await forwards.remove(request.listen)]
        return pb.ForwardList(forwards=map(self._forward, removed))

    def _list_forwards(self, request: pb.ListForwards, peer: Peer) -> pb.ForwardList:
        return pb.ForwardList(forwards=map(self._forward, self._session.forwards))

    def _forward(self, forward: Forward) -> pb.Forward:
        to_guest, from_guest = forward.count()
        return pb.Forward(
            listen=str(forward.listen),
            target=str(forward.target),
            via=forward.via,
            way=self._session.forwards.way(forward.via, forward.target),
            persistent=forward.persistent,
            connections=forward.open,
            accepted=forward.accepted,
            failed=forward.failed,
            bytes_to_guest=to_guest,
            bytes_from_guest=from_guest,
            last_error=forward.last_error,
            problem=forward.problem,
        )
