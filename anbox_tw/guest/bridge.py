"""The guest's end of the bridge: what the original has in ``anboxd`` and its application manager."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, maybeDeferred, succeed
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.errors import AnboxError, NotRunning
from anbox_tw.guest.apps import GuestApplication, find_applications, fingerprint
from anbox_tw.guest.tasks import LaunchFailed, Task, TaskTable
from anbox_tw.network import RetryPolicy, UnixConnector
from anbox_tw.rpc import Channel, Dispatcher, Peer
from anbox_tw.rpc._pb import anbox_bridge_pb2 as pb
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Void

__all__ = ["GuestBridge"]

LOOK_S = 2.0
"""How often installed applications are looked for."""

RETRY = RetryPolicy(first_delay=0.1, factor=1.7, max_delay=3.0)
"""Between attempts to reach the session."""


class GuestBridge(Service):
    """Reports boot, applications and tasks to the session, and does what it is asked to.

    Args:
        reactor: connects and tells the time.
        path: of the bridge, ``/dev/anbox_bridge``.
        root: the guest's root.
        environment: of the applications.
    """

    _log = Logger()

    def __init__(self, reactor: Any, path: str, root: str, environment: dict[str, str]) -> None:
        self._reactor = reactor
        self._path = path
        self._root = root
        self._channel: Channel | None = None
        self._task: Deferred[None] | None = None
        self._first_boot: bool | None = None
        self._look = LoopingCall(self._look_for_applications)
        self._look.clock = reactor
        self._fingerprint: tuple[object, ...] = ()
        self.applications: dict[str, GuestApplication] = {}
        self.tasks = TaskTable(reactor, root, environment, self._tasks_changed)
        self._dispatcher = Dispatcher()
        self._dispatcher.register("launch_application", pb.LaunchApplication, self.launch)
        self._dispatcher.register("set_focused_task", pb.SetFocusedTask, self._focus)
        self._dispatcher.register("remove_task", pb.RemoveTask, self._remove)
        self._dispatcher.register("resize_task", pb.ResizeTask, self._resize)

    @property
    def connected(self) -> bool:
        """Whether a session is there."""
        return self._channel is not None and self._channel.peer.connected

    def boot_finished(self, first: bool) -> None:
        """The guest has booted; said now, and again to each session that comes later."""
        self._first_boot = first
        self._send_boot()

    def set_clipboard(self, text: str) -> Deferred[None]:
        """Give the host a text; fails with ``NotRunning`` when no session is there."""
        return self._call("set_clipboard_data", pb.ClipboardData(text=text), Void).addCallback(lambda _: None)

    def get_clipboard(self) -> Deferred[str]:
        """The host's text; fails with ``NotRunning`` when no session is there."""
        return self._call("get_clipboard_data", Void(), pb.ClipboardData).addCallback(
            lambda answer: str(answer.text)
        )

    def startService(self) -> None:
        if self.running:
            return
        super().startService()
        self._task = ensureDeferred(self._run())
        self._task.addErrback(self._ended)
        self._look.start(LOOK_S).addErrback(self._ended)

    def stopService(self) -> Deferred[None]:
        """End all tasks and the connection."""
        if not self.running:
            return succeed(None)
        super().stopService()
        if self._look.running:
            self._look.stop()
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        await self.tasks.stop()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close("the guest stops")

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError, ConnectingCancelledError):
            self._log.failure("The bridge failed", failure)

    async def _run(self) -> None:
        connector = UnixConnector(self._reactor, self._path, retry=RETRY)
        while True:
            try:
                channel = await connector.connect(lambda: Channel(self._reactor, dispatcher=self._dispatcher))
            except AnboxError as error:
                # Not a matter of waiting, such as a path that we may not use; it may be mended all the same.
                self._log.warn("The bridge cannot be reached: {error}", error=error)
                await deferLater(self._reactor, RETRY.max_delay)
                continue
            self._log.info("The bridge is connected")
            self._channel = channel
            self._report()
            closed = await channel.when_closed()
            self._channel = None
            self._log.info("The bridge is lost: {why}", why=closed.cause)
            # A session that serves somebody else closes at once.
            await deferLater(self._reactor, RETRY.first_delay)

    # -- to the session --

    def _report(self) -> None:
        """Tell a new session everything."""
        self._send_applications(list(self.applications.values()), [])
        self._tasks_changed(list(self.tasks.tasks.values()), [])
        self._send_boot()

    def _send(self, **event: Any) -> None:
        if self._channel is not None:
            self._channel.send_event(pb.EventSequence(**event))

    def _send_boot(self) -> None:
        if self._first_boot is not None:
            self._send(boot_finished=pb.BootFinishedEvent(first_boot_done=self._first_boot))

    def _look_for_applications(self) -> None:
        seen = fingerprint(self._root)
        if seen == self._fingerprint:
            return
        self._fingerprint = seen
        found = find_applications(self._root)
        changed = [app for package, app in found.items() if self.applications.get(package) != app]
        removed = [package for package in self.applications if package not in found]
        self.applications = found
        if changed or removed:
            self._send_applications(changed, removed)

    def _send_applications(self, changed: list[GuestApplication], removed: list[str]) -> None:
        # One a message: an icon may be large, and a message has its limit.
        for app in changed:
            message = pb.ApplicationListUpdateEvent.Application(
                name=app.name,
                package=app.package,
                launch_intent=pb.Intent(
                    action="android.intent.action.MAIN",
                    package=app.package,
                    component=app.component,
                    categories=["android.intent.category.LAUNCHER"],
                ),
            )
            if app.icon:
                message.icon = app.icon
            self._send(application_list_update=pb.ApplicationListUpdateEvent(applications=[message]))
        if removed:
            # The original's guest knows only the package of what is gone.
            gone = [
                pb.ApplicationListUpdateEvent.Application(name="unknown", package=package)
                for package in removed
            ]
            self._send(application_list_update=pb.ApplicationListUpdateEvent(removed_applications=gone))

    def _tasks_changed(self, changed: list[Task], removed: list[Task]) -> None:
        if changed or removed:
            self._send(
                window_state_update=pb.WindowStateUpdateEvent(
                    windows=[_window(task) for task in changed],
                    removed_windows=[_window(task) for task in removed],
                )
            )

    def _call(self, method: str, request: Any, answer: type[Any]) -> Deferred[Any]:
        if self._channel is None:
            failed: Deferred[Any] = Deferred()
            failed.errback(NotRunning("no session is connected to the bridge", "wait for one"))
            return failed
        return self._channel.call(method, request, answer)

    # -- from the session --

    def launch(self, request: pb.LaunchApplication, peer: Peer) -> Void:
        """Launch what the intent names.

        Raises:
            LaunchFailed: no such application is installed, or it cannot be started.
        """
        intent = request.intent
        # A component alone is dropped by the original, which then starts nothing.
        app = self.applications.get(intent.package) if intent.package else None
        if app is None and intent.package:
            self._look_for_applications()
            app = self.applications.get(intent.package)
        if app is None:
            what = intent.package or intent.component or intent.action or intent.uri or "an empty intent"
            raise LaunchFailed(
                f"No application for {what!r} is installed", "see the list of applications: anbox apps"
            )
        bounds = request.launch_bounds
        frame = (
            (bounds.left, bounds.top, bounds.right, bounds.bottom)
            if request.HasField("launch_bounds")
            else None
        )
        self.tasks.launch(app, intent.uri, int(request.stack), frame)
        return Void()

    async def force_stop(self, request: pb.Intent, peer: Peer) -> Void:
        """End every task of the intent's package; fires when they have ended."""
        for task in list(self.tasks.tasks.values()):
            if task.application.package == request.package:
                await self.tasks.remove(task.id)
        return Void()

    def _focus(self, request: pb.SetFocusedTask, peer: Peer) -> Void:
        self.tasks.focus(request.id)
        return Void()

    async def _remove(self, request: pb.RemoveTask, peer: Peer) -> Void:
        await maybeDeferred(self.tasks.remove, request.id)
        return Void()

    def _resize(self, request: pb.ResizeTask, peer: Peer) -> Void:
        rect = request.rect
        self.tasks.resize(request.id, (rect.left, rect.top, rect.right, rect.bottom))
        return Void()


def _window(task: Task) -> pb.WindowStateUpdateEvent.WindowState:
    left, top, right, bottom = task.frame
    return pb.WindowStateUpdateEvent.WindowState(
        display_id=0,
        # Nothing draws here.
        has_surface=False,
        package_name=task.application.package,
        frame_left=left,
        frame_top=top,
        frame_right=right,
        frame_bottom=bottom,
        task_id=task.id,
        stack_id=task.stack,
    )
