"""What a session keeps for the desktop: the applications' database on the disk and, where wanted, their launchers.

All files are written in a thread, one batch after the other; what comes meanwhile is one more batch. A disk that is full
or not ours is told and tried again with the next change: the session itself goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from anbox_tw.session._files import write_atomically
from anbox_tw.session.applications import (
    MAX_DATABASE_BYTES,
    ApplicationDatabase,
    DatabaseError,
    NewerDatabase,
)
from anbox_tw.session.bridge import Application, Bridge
from anbox_tw.session.launchers import LauncherDirectory

__all__ = ["DATABASE_NAME", "SETTLE_S", "DesktopFiles"]

DATABASE_NAME = "applications.json"

SETTLE_S = 20.0
"""After a boot, without news of applications for this long, the guest has told all it has: the original's application
manager sends its list in one go when Android says that the boot is complete."""

InThread = Callable[[Callable[[], Any]], Deferred[Any]]


class DesktopFiles(Service):
    """Keeps the database and the launchers as the guest reports its applications.

    Args:
        reactor: tells the time and has the threads.
        bridge: reports.
        state_path: the directory of the database; empty keeps nothing on the disk.
        launchers: where launchers go; None for none.
        in_thread: runs what blocks; by default in the reactor's thread pool.

    Attributes:
        database: what is known.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        bridge: Bridge,
        state_path: str = "",
        launchers: LauncherDirectory | None = None,
        in_thread: InThread | None = None,
    ) -> None:
        self._reactor = reactor
        self._bridge = bridge
        self._path = os.path.join(state_path, DATABASE_NAME) if state_path else ""
        self._launchers = launchers
        self._in_thread = in_thread or self._threaded
        self.database = ApplicationDatabase()
        self._writable = bool(state_path)
        self._dirty = False
        self._changes: dict[str, Application | None] = {}
        self._writing = False
        self._waiting: list[Deferred[None]] = []
        self._settle: IDelayedCall | None = None
        self._stop_observing: Callable[[], None] = lambda: None

    @property
    def path(self) -> str:
        """Of the database's file; empty when there is none."""
        return self._path

    def startService(self) -> None:
        """Read the database, put the launchers right, and follow the guest."""
        if self.running:
            return
        super().startService()
        self._load()
        self._stop_observing = self._bridge.observe(self._bridge_changed)
        if self._launchers is not None:
            self._begin(sweep=True)

    def stopService(self) -> Deferred[None]:
        """Fires when everything is on the disk."""
        if not self.running:
            return self._when_written()
        super().stopService()
        self._stop_observing()
        self._cancel_settle()
        return self._when_written()

    def applications(self) -> list[Application]:
        """All that are known, by name."""
        known = {**self.database.applications, **self._bridge.applications}
        return sorted(known.values(), key=lambda app: (app.name.casefold(), app.package))

    def __len__(self) -> int:
        """How many applications are known."""
        reported = self._bridge.applications
        return len(reported) + sum(package not in reported for package in self.database.applications)

    def label_of(self, package: str) -> str:
        """The name that users know a package by, or an empty string."""
        known = self._bridge.applications.get(package) or self.database.applications.get(package)
        return known.name if known is not None else ""

    # -- what the guest says --

    def _bridge_changed(self, kind: str, value: Any) -> None:
        if kind == "applications":
            changed, removed = value
            # One that an update both reports and removes is gone.
            known = self._bridge.applications
            self._applications_changed([known[package] for package in changed if package in known], removed)
        elif kind == "boot_finished":
            self._restart_settle()
        elif kind == "disconnected":
            self._cancel_settle()
            self.database.guest_left()

    def _applications_changed(self, changed: list[Application], removed: list[str]) -> None:
        self._dirty |= self.database.take(changed)
        if self._launchers is not None:
            for application in changed:
                if application.package in self.database.applications:
                    self._changes[application.package] = application
        self._forget(self.database.remove(removed))
        if self._settle is not None:
            self._restart_settle()

    def _forget(self, packages: list[str]) -> None:
        if packages:
            self._dirty = True
        if self._launchers is not None:
            self._changes.update(dict.fromkeys(packages))
        self._write_soon()

    def _restart_settle(self) -> None:
        self._cancel_settle()
        self._settle = self._reactor.callLater(SETTLE_S, self._settled)

    def _cancel_settle(self) -> None:
        settle, self._settle = self._settle, None
        if settle is not None and settle.active():
            settle.cancel()

    def _settled(self) -> None:
        self._settle = None
        gone = self.database.forget_unreported()
        if gone:
            self._log.info("The guest no longer has {packages}", packages=", ".join(gone))
        self._forget(gone)

    # -- the disk --

    def _threaded(self, work: Callable[[], Any]) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)

    def _load(self) -> None:
        """Read the file; at the start, when nobody waits for us yet."""
        if not self._path:
            return
        try:
            with open(self._path, "rb") as file:
                data = file.read(MAX_DATABASE_BYTES + 1)
            self.database.load(data)
        except FileNotFoundError:
            pass
        except OSError as error:
            why = error.strerror
            self._log.warn(
                "The applications of last time are not known: {path}: {why}", path=self._path, why=why
            )
        except DatabaseError as error:
            self._log.warn(
                "The applications of last time are not known: {path}: {why}", path=self._path, why=error
            )
            if isinstance(error, NewerDatabase):
                self._writable = False

    def _write_soon(self) -> None:
        if self.running and not self._writing and (self._changes or self._dirty):
            self._begin()

    def _begin(self, *, sweep: bool = False) -> None:
        self._writing = True
        ensureDeferred(self._write(sweep)).addErrback(
            lambda failure: self._log.failure("The applications could not be written", failure)
        ).addCallback(self._written)

    def _written(self, _: object) -> None:
        self._writing = False
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    async def _write(self, sweep: bool) -> None:
        """Write until nothing new has come meanwhile."""
        while sweep or self._changes or self._dirty:
            changes, self._changes = self._changes, {}
            dirty, self._dirty = self._dirty, False
            content = self.database.to_bytes() if dirty and self._writable else None
            known = dict(self.database.applications) if sweep else None
            sweep = False
            await self._in_thread(partial(self._put, changes, content, known))

    def _put(
        self,
        changes: dict[str, Application | None],
        content: bytes | None,
        known: dict[str, Application] | None,
    ) -> None:
        """In the thread: all files of one batch. One that cannot be written does not keep the others from it."""
        troubles: list[str] = []

        def attempt(work: Callable[[], Any]) -> None:
            try:
                work()
            except OSError as error:
                troubles.append(f"{error.filename or self._path}: {error.strerror}")

        if content is not None:
            attempt(partial(self._put_database, content))
        if self._launchers is not None:
            launchers = self._launchers
            if known is not None:
                attempt(partial(launchers.sweep, set(known)))
                changes = {**known, **changes}
            for package, application in changes.items():
                if application is None:
                    attempt(partial(launchers.remove, package))
                else:
                    attempt(partial(launchers.store, application))
        if troubles:
            more = f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else ""
            self._log.warn("Cannot write {trouble}{more}", trouble=troubles[0], more=more)

    def _put_database(self, content: bytes) -> None:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        write_atomically(self._path, content)

    def _when_written(self) -> Deferred[None]:
        if not self._writing:
            return succeed(None)
        self._waiting.append(Deferred())
        return self._waiting[-1]
