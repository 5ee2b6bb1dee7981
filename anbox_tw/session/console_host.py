"""What a session is to the emulator console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, fail
from zope.interface import implementer

from anbox_tw.device import Device, Refused
from anbox_tw.device.injector import Injector
from anbox_tw.interfaces import IConsoleHost, IRedirections
from anbox_tw.session._state import Phase

if TYPE_CHECKING:
    from anbox_tw.session.service import SessionService

__all__ = ["SessionConsole"]


@implementer(IConsoleHost)
class SessionConsole:
    """A session, as the console sees it.

    Args:
        session: which.
    """

    def __init__(self, session: SessionService) -> None:
        self._session = session

    @property
    def name(self) -> str:
        """Of the instance."""
        return self._session.paths.instance

    @property
    def device(self) -> Device:
        """Of the session."""
        return self._session.device

    @property
    def injector(self) -> Injector:
        """Of the session."""
        return self._session.injector

    @property
    def redirections(self) -> IRedirections:
        """The session's forwards."""
        forwards: IRedirections = self._session.forwards
        return forwards

    @property
    def running(self) -> bool:
        """Whether the container runs."""
        return self._session.state.phase is Phase.RUNNING

    def pause(self) -> Deferred[None]:
        """Not offered: no container manager freezes containers yet."""
        return fail(Refused("this session cannot stop its virtual device, only end it: use 'kill'"))

    def resume(self) -> Deferred[None]:
        """Likewise: the supervisor asks for the container by itself."""
        return fail(Refused("the virtual device starts by itself as soon as its container manager runs it"))

    def stop(self, reason: str) -> None:
        """End the session."""
        self._session.end(reason)
