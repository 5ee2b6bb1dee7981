"""The running applications of the guest: Android calls each a task."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.internet import main
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import AnboxError
from anbox_tw.guest.apps import GuestApplication

__all__ = ["LaunchFailed", "Task", "TaskTable", "UnknownTask"]

MAX_TASKS = 256
"""Launched at once; a host that asks for more is refused."""

STOP_GRACE_S = 3.0
"""Between SIGTERM and SIGKILL of a task that is removed."""

DEFAULT_STACK = 1
"""Fullscreen: where Android puts a task that no stack is named for."""


class LaunchFailed(AnboxError):
    """An application could not be started. The first words are the original guest's."""


class UnknownTask(AnboxError):
    """There is no task of this number."""


@attrs.define(eq=False)
class Task:
    """One running application.

    Attributes:
        id: its number, from 1.
        application: what runs.
        pid: of its first process, which leads a process group of its own.
        stack: 1 fullscreen, 2 freeform.
        frame: left, top, right, bottom.
        ended: fires when that process has ended.
    """

    id: int
    application: GuestApplication
    pid: int
    stack: int
    frame: tuple[int, int, int, int]
    ended: Deferred[None] = attrs.field(factory=Deferred)


@implementer(IReadDescriptor)
class _PidFd:
    """Notices the end of one process on its pidfd, and reaps it."""

    def __init__(self, fd: int, process: subprocess.Popen[bytes], on_end: Callable[[int], None]) -> None:
        self._fd = fd
        self._process = process
        self._on_end = on_end

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "guest"

    def doRead(self) -> Any:
        return main.CONNECTION_DONE if self._process.poll() is not None else None

    def connectionLost(self, reason: Failure) -> None:
        os.close(self._fd)
        code = self._process.returncode
        self._on_end(-1 if code is None else code)


class TaskTable:
    """Starts, lists and ends tasks.

    Args:
        reactor: waits for processes.
        root: the guest's root, where applications without a directory of their own run.
        environment: of the applications.
        on_change: called with the changed tasks and the removed ones.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        root: str,
        environment: Mapping[str, str],
        on_change: Callable[[list[Task], list[Task]], object],
    ) -> None:
        self._reactor = reactor
        self._root = root
        self._environment = environment
        self._on_change = on_change
        self._last = 0
        self.tasks: dict[int, Task] = {}
        self.focused = 0

    def launch(
        self, application: GuestApplication, uri: str, stack: int, frame: tuple[int, int, int, int] | None
    ) -> Task:
        """Start an application, or bring it to the front if it runs and there is no uri to show.

        Raises:
            LaunchFailed: it cannot be started.
        """
        for task in self.tasks.values():
            if task.application.package == application.package and not uri:
                self.focused = task.id
                self._on_change([task], [])
                return task
        if len(self.tasks) >= MAX_TASKS:
            raise LaunchFailed(f"Failed to execute process: {MAX_TASKS} tasks run already")
        command = application.command_for(uri)
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                env=dict(self._environment),
                cwd=application.directory or self._root,
                start_new_session=True,
            )
        except OSError as error:
            raise LaunchFailed(
                f"Failed to execute process {command[0]}: {error.strerror}",
                "check the application's manifest",
            ) from error
        self._last += 1
        task = Task(
            self._last,
            application,
            process.pid,
            stack or DEFAULT_STACK,
            frame or (0, 0, 0, 0),
        )
        self.tasks[task.id] = task
        self.focused = task.id
        fd = os.pidfd_open(process.pid)
        self._reactor.addReader(_PidFd(fd, process, lambda code: self._ended(task, code)))
        self._log.info(
            "task {id}: {package}, pid {pid}", id=task.id, package=application.package, pid=task.pid
        )
        self._on_change([task], [])
        return task

    def get(self, number: int) -> Task:
        """The task of that number.

        Raises:
            UnknownTask: there is none.
        """
        try:
            return self.tasks[number]
        except KeyError:
            raise UnknownTask(f"there is no task {number}") from None

    def focus(self, number: int) -> None:
        """Give the task the focus.

        Raises:
            UnknownTask: there is none.
        """
        self.focused = self.get(number).id

    def resize(self, number: int, frame: tuple[int, int, int, int]) -> None:
        """Move and resize a task's window.

        Raises:
            UnknownTask: there is none.
        """
        task = self.get(number)
        task.frame = frame
        self._on_change([task], [])

    def remove(self, number: int) -> Deferred[None]:
        """End a task; fires when its process has ended, killed if it did not end by itself.

        Raises:
            UnknownTask: there is none.
        """
        task = self.get(number)
        self._signal(task, signal.SIGTERM)
        killer = self._reactor.callLater(STOP_GRACE_S, self._signal, task, signal.SIGKILL)
        done: Deferred[None] = Deferred()

        def ended(result: None) -> None:
            if killer.active():
                killer.cancel()
            done.callback(None)

        task.ended.addCallback(ended)
        return done

    def stop(self) -> Deferred[None]:
        """End all tasks; fires when they have ended."""
        return gatherResults([self.remove(number) for number in list(self.tasks)]).addCallback(lambda _: None)

    def _signal(self, task: Task, number: int) -> None:
        try:
            os.killpg(task.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def _ended(self, task: Task, code: int) -> None:
        self._log.info("task {id} has ended with {code}", id=task.id, code=code)
        # Its process group may have more in it.
        self._signal(task, signal.SIGKILL)
        self.tasks.pop(task.id, None)
        if self.focused == task.id:
            self.focused = 0
        self._on_change([], [task])
        task.ended.callback(None)
