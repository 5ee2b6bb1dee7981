"""The host's end of the bridge to the Android side (``anboxd``), ``/dev/anbox_bridge`` in the guest.

Methods, events and their meaning are those of the original's ``src/anbox/bridge``: the guest calls
``set_clipboard_data`` and ``get_clipboard_data`` and sends events; the host calls ``launch_application``,
``set_focused_task``, ``remove_task`` and ``resize_task``. One guest at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import attrs
from google.protobuf.message import DecodeError
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IAddress, IProtocol, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from anbox_tw.interfaces import IClipboard, IConnectionCreator
from anbox_tw.rpc import CallTimedOut, Channel, ChannelClosed, Dispatcher, Limits, Peer, parse_message
from anbox_tw.rpc._pb import anbox_bridge_pb2 as pb
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Void
from anbox_tw.session.errors import GuestNotConnected

__all__ = ["CALL_TIMEOUT_S", "Application", "Bridge", "Rect", "Window"]

CALL_TIMEOUT_S = 30.0
"""As the original's host waits for the guest."""

MAX_APPLICATIONS = 4096
"""Packages a guest may list; a well-filled phone has some hundred."""

MAX_ICON_BYTES = 1 << 20
"""An icon that is larger is left out; Android's are some ten kB."""

MAX_ICONS_BYTES = 64 << 20
"""All icons together: `MAX_APPLICATIONS` of `MAX_ICON_BYTES` would be 4 GiB. One that goes beyond is left out."""

MAX_WINDOWS = 1024
"""Windows a guest may report."""

MAX_TEXT_CHARS = 1024
"""Of a name, package, component or uri in a report."""

BRIDGE_LIMITS = Limits(max_payload=8 << 20, max_served=32, max_unread=16 << 20)
"""The guest is hostile: an application list with icons comes one icon a message, far below these."""


@attrs.frozen
class Rect:
    """A rectangle in pixels; right and bottom are the first that are outside."""

    left: int
    top: int
    right: int
    bottom: int

    def to_wire(self) -> pb.Rect:
        """As the bridge's message."""
        return pb.Rect(left=self.left, top=self.top, right=self.right, bottom=self.bottom)


@attrs.frozen
class Application:
    """An application that the guest can launch.

    Attributes:
        name: its label.
        package: the key.
        component: activity of its launch intent, or empty.
        intent: the launch intent's other parts that are set: action, uri, type, categories.
        icon: PNG, or empty.
    """

    name: str
    package: str
    component: str = ""
    intent: dict[str, Any] = attrs.field(factory=dict)
    icon: bytes = attrs.field(default=b"", repr=False)


@attrs.frozen
class Window:
    """A window as the guest reports it."""

    task: int
    package: str
    display: int
    stack: int
    has_surface: bool
    frame: Rect


def _text(value: str) -> str:
    return value[:MAX_TEXT_CHARS]


@implementer(IConnectionCreator)
class Bridge:
    """Serves the guest and keeps what it reports.

    Args:
        clock: for the timeouts of calls.
        clipboard: shared with the guest.

    Attributes:
        applications: by package.
        windows: by task.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, clipboard: IClipboard) -> None:
        self._clock = clock
        self._clipboard = clipboard
        self._channel: Channel | None = None
        self._unanswered = False
        self._observers: list[Callable[[str, Any], object]] = []
        self._dispatcher = Dispatcher()
        self._dispatcher.register("set_clipboard_data", pb.ClipboardData, self._set_clipboard)
        self._dispatcher.register("get_clipboard_data", Void, self._get_clipboard)
        self._icons_bytes = 0
        self.applications: dict[str, Application] = {}
        self.windows: dict[int, Window] = {}

    @property
    def connected(self) -> bool:
        """Whether a guest is there."""
        return self._channel is not None and self._channel.peer.connected

    def observe(self, callback: Callable[[str, Any], object]) -> Callable[[], None]:
        """Call ``callback(kind, value)`` for what the guest does; returns what ends that.

        Kinds and values: ``connected`` and ``disconnected`` (None), ``boot_finished`` (whether it was the first boot of
        its data), ``applications`` (changed packages, and those that the guest calls removed), ``windows`` (changed and removed tasks),
        ``clipboard`` (None).
        """
        self._observers.append(callback)
        return lambda: self._observers.remove(callback) if callback in self._observers else None

    def reset(self) -> None:
        """Forget what a guest reported whose container is gone, and end its connection."""
        self.applications.clear()
        self._icons_bytes = 0
        self.windows.clear()
        if self._channel is not None:
            self._channel.abort("its container is gone")

    # -- the guest's connection --

    def create_connection_for(self, address: IAddress) -> IProtocol | None:
        """Serve the guest; a second client is refused unless the first one is dead."""
        old = self._channel
        if old is not None and not self._is_dead(old):
            self._log.warn("bridge: a second client is refused; {old} is connected", old=old)
            return None
        if old is not None:
            self._log.warn("bridge: {old} is dead, and replaced", old=old)
            self._forget(old)
            old.abort("replaced by a new client")
        channel = Channel(
            self._clock,
            dispatcher=self._dispatcher,
            on_close=lambda why: self._closed(channel, why),
            limits=BRIDGE_LIMITS,
        )
        channel.on_event = lambda data: self._event(channel, data)
        self._channel = channel
        self._unanswered = False
        self._clock.callLater(0, self._announce, channel)
        return channel

    def _announce(self, channel: Channel) -> None:
        # The channel has its transport by the next turn of the reactor.
        if channel is self._channel:
            self._log.info("bridge: {channel} is connected", channel=channel)
            self._tell("connected", None)

    def _is_dead(self, channel: Channel) -> bool:
        """Whether the connected client is one only by name: it left a call without an answer, or has ended.

        The kernel closes a dead process's socket at once; but a child that it left may hold the socket open.
        """
        credentials = channel.peer.credentials
        if self._unanswered or channel.closed is not None:
            return True
        if credentials is None or credentials.pid <= 0:
            # Its process cannot be seen from here.
            return False
        try:
            os.kill(credentials.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def _closed(self, channel: Channel, why: ChannelClosed) -> None:
        if channel is self._channel:
            self._log.info("bridge: {why}", why=why.cause)
            self._forget(channel)

    def _forget(self, channel: Channel) -> None:
        if channel is self._channel:
            self._channel = None
            # The next one reports its own; of applications the original's sends no second list.
            self.windows.clear()
            self._tell("disconnected", None)

    # -- guest to host --

    async def _set_clipboard(self, request: pb.ClipboardData, peer: Peer) -> Void:
        await self._clipboard.set_text(request.text)
        self._tell("clipboard", None)
        return Void()

    async def _get_clipboard(self, request: Void, peer: Peer) -> pb.ClipboardData:
        text = await self._clipboard.get_text()
        # As in the original, the field is left out when there is nothing.
        return pb.ClipboardData(text=text) if text else pb.ClipboardData()

    def _event(self, channel: Channel, data: bytes) -> None:
        if channel is not self._channel:
            return
        try:
            events = parse_message(pb.EventSequence, data)
        except DecodeError as error:
            self._log.warn("bridge: an event cannot be parsed: {error}", error=error)
            return
        if events.HasField("boot_finished"):
            first = events.boot_finished.first_boot_done
            self._log.info("bridge: the guest has booted, first boot: {first}", first=first)
            self._tell("boot_finished", first)
        if events.HasField("application_list_update"):
            self._applications_changed(events.application_list_update)
        if events.HasField("window_state_update"):
            self._windows_changed(events.window_state_update)

    def _applications_changed(self, update: pb.ApplicationListUpdateEvent) -> None:
        changed, removed = [], []
        for app in update.applications:
            # The original's appmgr pads its list with empty entries.
            if not app.package:
                continue
            if len(self.applications) >= MAX_APPLICATIONS and app.package not in self.applications:
                self._log.warn("bridge: {package} is left out: too many applications", package=app.package)
                continue
            launch = app.launch_intent
            intent: dict[str, Any] = {
                name: _text(getattr(launch, name))
                for name in ("action", "uri", "type")
                if getattr(launch, name)
            }
            if launch.categories:
                intent["categories"] = [_text(category) for category in launch.categories[:64]]
            package = _text(app.package)
            self._drop(package)
            icon = app.icon if len(app.icon) <= MAX_ICON_BYTES else b""
            if self._icons_bytes + len(icon) > MAX_ICONS_BYTES:
                icon = b""
            self._icons_bytes += len(icon)
            self.applications[package] = Application(
                name=_text(app.name),
                package=package,
                component=_text(launch.component),
                intent=intent,
                icon=icon,
            )
            changed.append(package)
        for app in update.removed_applications[:MAX_APPLICATIONS]:
            # Told even when this guest has not reported it: an earlier one may have.
            if app.package:
                self._drop(_text(app.package))
                removed.append(_text(app.package))
        if changed or removed:
            self._tell("applications", (changed, removed))

    def _drop(self, package: str) -> None:
        app = self.applications.pop(package, None)
        if app is not None:
            self._icons_bytes -= len(app.icon)

    def _windows_changed(self, update: pb.WindowStateUpdateEvent) -> None:
        changed, removed = [], []
        for state in update.removed_windows:
            if self.windows.pop(state.task_id, None) is not None:
                removed.append(state.task_id)
        for state in update.windows:
            if len(self.windows) >= MAX_WINDOWS and state.task_id not in self.windows:
                continue
            self.windows[state.task_id] = Window(
                task=state.task_id,
                package=_text(state.package_name),
                display=state.display_id,
                stack=state.stack_id,
                has_surface=state.has_surface,
                frame=Rect(state.frame_left, state.frame_top, state.frame_right, state.frame_bottom),
            )
            changed.append(state.task_id)
        # A task that an update both removes and reports stays, as in the original.
        removed = [task for task in removed if task not in self.windows]
        if changed or removed:
            self._tell("windows", (changed, removed))

    def _tell(self, kind: str, value: Any) -> None:
        for observer in list(self._observers):
            try:
                observer(kind, value)
            except Exception:
                self._log.failure("bridge: an observer of {kind} failed", kind=kind)

    # -- host to guest --

    def launch_application(
        self,
        *,
        package: str = "",
        component: str = "",
        action: str = "",
        uri: str = "",
        type: str = "",
        categories: tuple[str, ...] = (),
        bounds: Rect | None = None,
        stack: int = 0,
    ) -> Deferred[None]:
        """Have the guest launch an intent.

        Args:
            package: of the application.
            component: activity within the package.
            action: of the intent.
            uri: data of the intent.
            type: MIME type of the data.
            categories: of the intent.
            bounds: where its window shall be.
            stack: 0 default, 1 fullscreen, 2 freeform.

        Returns:
            Fires when the guest has done it; fails with its own error, with ``GuestNotConnected`` or a timeout.
        """
        intent = pb.Intent(categories=categories)
        for name, value in (
            ("package", package),
            ("component", component),
            ("action", action),
            ("uri", uri),
            ("type", type),
        ):
            if value:
                setattr(intent, name, value)
        request = pb.LaunchApplication(intent=intent, stack=pb.LaunchApplication.Stack.Name(stack))
        if bounds is not None:
            request.launch_bounds.CopyFrom(bounds.to_wire())
        return self._call("launch_application", request)

    def set_focused_task(self, task: int) -> Deferred[None]:
        """Give a task the focus; fires and fails as ``launch_application``."""
        return self._call("set_focused_task", pb.SetFocusedTask(id=task))

    def remove_task(self, task: int) -> Deferred[None]:
        """End a task; fires and fails as ``launch_application``."""
        return self._call("remove_task", pb.RemoveTask(id=task))

    def resize_task(self, task: int, rect: Rect, mode: int = 3) -> Deferred[None]:
        """Move and resize a task's window; fires and fails as ``launch_application``.

        Args:
            task: its id.
            rect: the new place.
            mode: Android's resize mode; the original sends 3 (by the user, forced).
        """
        return self._call("resize_task", pb.ResizeTask(id=task, resize_mode=mode, rect=rect.to_wire()))

    def _call(self, method: str, request: Any) -> Deferred[None]:
        channel = self._channel
        if channel is None or not channel.peer.connected:
            return fail(
                GuestNotConnected(
                    f"{method}: no guest is connected to the bridge",
                    "wait until it has booted: anbox wait --for booted",
                )
            )

        def timed_out(failure: Any) -> Any:
            failure.trap(CallTimedOut)
            # Until it answers something again, a newcomer may take its place.
            self._unanswered = self._unanswered or channel is self._channel
            return failure

        def answered(_: Void) -> None:
            if channel is self._channel:
                self._unanswered = False

        return channel.call(method, request, Void, CALL_TIMEOUT_S).addCallbacks(answered, timed_out)
