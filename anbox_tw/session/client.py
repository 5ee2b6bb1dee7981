"""Asking a running session: the client of its control socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anbox_tw.errors import NotRunning
from anbox_tw.network import RetryPolicy, RuntimePaths, UnixConnector
from anbox_tw.rpc import Channel
from anbox_tw.rpc._pb import anbox_session_pb2 as pb
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Void

__all__ = ["SessionClient", "connect", "info_of"]

Info = dict[str, Any]

DEVICE_TIMEOUT_S = 100.0
"""A gesture takes up to a minute, and is answered at its end."""


def info_of(message: pb.SessionInfo) -> Info:
    """A ``SessionInfo`` as a plain JSON-able dict, each field present, sockets by name, details parsed."""
    info: Info = {
        field.name: getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if field.number < 127 and field.name not in ("sockets", "container", "details")
    }
    info["sockets"] = {socket.name: socket.path for socket in message.sockets}
    info["container"] = MessageToDict(message.container, preserving_proto_field_name=True)
    info["container"]["details"] = _parsed(message.container.details)
    info["details"] = _parsed(message.details)
    return info


def _parsed(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}


class SessionClient:
    """One connection to a session's control socket.

    Args:
        channel: connected; its events go to the callbacks of ``watch``.
    """

    _log = Logger()

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._callbacks: list[Callable[[Info], object]] = []
        channel.on_event = self._event

    def info(self) -> Deferred[Info]:
        """The session as it is now; see `info_of`."""
        return self.channel.call("session_info", pb.SessionInfoRequest(), pb.SessionInfo).addCallback(info_of)

    def watch(self, callback: Callable[[Info], object]) -> Deferred[Info]:
        """Have each change told.

        Args:
            callback: gets ``kind``, ``name``, ``detail``, ``timestamp`` and ``info`` of each event.

        Returns:
            Fires with the session as it is now.
        """
        self._callbacks.append(callback)
        return self.channel.call("watch_session", pb.WatchSession(), pb.SessionInfo).addCallback(info_of)

    def stop(self, reason: str = "") -> Deferred[None]:
        """End the session; fires when it has understood, ``when_lost`` tells when it is gone."""
        return self.channel.call("stop_session", pb.StopSession(reason=reason), pb.Done).addCallback(_nothing)

    def launch(
        self,
        *,
        package: str = "",
        component: str = "",
        action: str = "",
        uri: str = "",
        type: str = "",
        categories: tuple[str, ...] = (),
        stack: int = 0,
        bounds: tuple[int, int, int, int] | None = None,
    ) -> Deferred[None]:
        """Launch an intent in the guest; fails with the guest's error.

        Arguments as ``Bridge.launch_application``; bounds are left, top, right and bottom.
        """
        request = pb.Launch(
            package=package,
            component=component,
            action=action,
            uri=uri,
            type=type,
            categories=categories,
            stack=stack,
        )
        if bounds is not None:
            request.left, request.top, request.right, request.bottom = bounds
        # The session itself waits 30 s for the guest: its answer says more than a timeout of ours.
        return self.channel.call("launch", request, pb.Done, 40.0).addCallback(_nothing)

    def applications(self) -> Deferred[list[Info]]:
        """The applications of the guest: name, package and component of each."""

        def plain(answer: pb.ApplicationList) -> list[Info]:
            return [
                {"name": app.name, "package": app.package, "component": app.component}
                for app in answer.applications
            ]

        request = pb.ListApplications()
        return self.channel.call("list_applications", request, pb.ApplicationList).addCallback(plain)

    def get_clipboard(self) -> Deferred[str]:
        """The text of the clipboard."""
        return self.channel.call("get_clipboard", Void(), pb.Clipboard).addCallback(
            lambda answer: str(answer.text)
        )

    def set_clipboard(self, text: str) -> Deferred[None]:
        """Replace the text of the clipboard."""
        return self.channel.call("set_clipboard", pb.Clipboard(text=text), pb.Done).addCallback(_nothing)

    def device(self, verb: str, **arguments: Any) -> Deferred[Any]:
        """Read or change the device; see `anbox_tw.session.verbs` for what there is.

        Args:
            verb: for example ``get`` or ``sensor.set``.
            arguments: JSON-able, by name.

        Returns:
            Fires with the verb's result.
        """
        request = pb.DeviceRequest(verb=verb, arguments=json.dumps(arguments))
        return self.channel.call("device", request, pb.DeviceAnswer, DEVICE_TIMEOUT_S).addCallback(
            lambda answer: json.loads(answer.result)
        )

    def add_forward(
        self, listen: str, target: str, *, via: str = "auto", persistent: bool = False
    ) -> Deferred[Info]:
        """Add a forward; fires with the fields of ``Forward``. Arguments as ``Forwards.add``."""
        request = pb.AddForward(listen=listen, target=target, via=via, persistent=persistent)
        added = self.channel.call("add_forward", request, pb.ForwardList)
        return added.addCallback(lambda answer: _forwards(answer)[0])

    def remove_forward(self, listen: str) -> Deferred[Info]:
        """Remove a forward; fires with what it was, when all of it is closed."""
        removed = self.channel.call("remove_forward", pb.RemoveForward(listen=listen), pb.ForwardList)
        return removed.addCallback(lambda answer: _forwards(answer)[0])

    def remove_all_forwards(self) -> Deferred[list[Info]]:
        """Remove all forwards; fires with what they were, when all is closed."""
        request = pb.RemoveForward(all=True)
        return self.channel.call("remove_forward", request, pb.ForwardList).addCallback(_forwards)

    def forwards(self) -> Deferred[list[Info]]:
        """The forwards, each with the fields of ``Forward``."""
        return self.channel.call("list_forwards", pb.ListForwards(), pb.ForwardList).addCallback(_forwards)

    def when_lost(self) -> Deferred[str]:
        """A Deferred of the caller's own: fires with the reason when the connection has ended."""
        return self.channel.when_closed().addCallback(lambda closed: closed.cause)

    def close(self) -> Deferred[None]:
        """End the connection; the session goes on."""
        return self.channel.close().addCallback(_nothing)

    def _event(self, data: bytes) -> None:
        try:
            message = pb.SessionEvent.FromString(data)
        except DecodeError as error:
            self._log.warn("the session sent an event that cannot be parsed: {error}", error=error)
            return
        event = {
            "kind": message.kind,
            "name": message.name,
            "detail": message.detail,
            "timestamp": message.timestamp,
            "info": info_of(message.info),
        }
        for callback in list(self._callbacks):
            try:
                callback(event)
            except Exception:
                self._log.failure("a watcher failed")


def _forwards(answer: pb.ForwardList) -> list[Info]:
    names = [field.name for field in pb.Forward.DESCRIPTOR.fields]
    return [{name: getattr(each, name) for name in names} for each in answer.forwards]


def _nothing(_: object) -> None:
    return None


def connect(reactor: Any, paths: RuntimePaths, retry: RetryPolicy | None = None) -> Deferred[SessionClient]:
    """Connect to the session of an instance.

    Args:
        reactor: connects.
        paths: of the instance.
        retry: tries once when it is None.

    Returns:
        Fires with the client; fails with `NotRunning` when there is no session.
    """

    def explain(failure: Any) -> Any:
        failure.trap(NotRunning)
        option = "" if paths.instance == "default" else f" --instance {paths.instance}"
        raise NotRunning(
            f"no session of the instance '{paths.instance}' answers at {paths.control}",
            f"start one with 'anbox up{option}'",
        ) from failure.value

    connector = UnixConnector(reactor, paths.control, retry=retry or RetryPolicy.once())
    connecting: Deferred[Channel] = connector.connect(lambda: Channel(reactor, name="the session"))
    return connecting.addErrback(explain).addCallback(SessionClient)
