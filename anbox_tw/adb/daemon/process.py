"""Child processes of adbd: started quickly, reaped without signals, ended with their group.

``subprocess`` starts a child with ``vfork``, which costs the same however large this process is; its
end is seen on a pidfd, so no SIGCHLD handler is needed and an embedding program keeps its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from twisted.internet import main
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb.daemon.identity import Identity

__all__ = ["Child", "ChildSet", "open_pty", "set_window_size"]

POLL_S = 0.02
"""How often an ended child is looked for where the kernel has no pidfd (before Linux 5.3)."""
STOP_GRACE_S = 2.0
"""Between SIGHUP and SIGKILL when the daemon itself stops."""
MAX_CHILDREN = 1024
"""Children at a time; a further one is refused."""
PIPE_SIZE = 256 * 1024
"""Capacity asked for a child's output, so that bulk needs fewer turns of the reactor."""

_JOB_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP)

_OPEN_TTY = 'exec 0<>"$0" 1>&0 2>&0; exec "$@"'
"""A session leader that opens a terminal gets it as its controlling terminal. Doing it in a shell spares
the ``fork`` and Python code in the child that TIOCSCTTY would take."""


class Child:
    """One running child, leader of its own session and process group.

    Attributes:
        pid: its process id.
        stdin: descriptor to write to, or -1; taken over by the caller.
        stdout: descriptor to read from; taken over by the caller.
        stderr: descriptor to read from, or -1; taken over by the caller.
        ended: fires once with the exit status in a shell's terms: 128 + N for signal N.
    """

    def __init__(self, process: subprocess.Popen[bytes], stdin: int, stdout: int, stderr: int) -> None:
        self.pid = process.pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.ended: Deferred[int] = Deferred()
        self.running = True
        self._process = process

    def signal_group(self, number: int) -> None:
        """Send a signal to the child's process group."""
        if self.running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def poll(self) -> bool:
        """Look whether it has ended; fires ``ended`` the first time."""
        if self.running:
            status = self._process.poll()
            if status is None:
                return False
            self.running = False
            self.ended.callback(status if status >= 0 else 128 - status)
        return True


@implementer(IReadDescriptor)
class _PidFd:
    """Reaps one child when its pidfd becomes readable."""

    def __init__(self, owner: ChildSet, child: Child, fd: int) -> None:
        self._owner = owner
        self._child = child
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "adbd"

    def doRead(self) -> Any:
        return main.CONNECTION_DONE if self._child.poll() else None

    def connectionLost(self, reason: Failure) -> None:
        self._owner._forget(self._child)
        os.close(self._fd)


class ChildSet:
    """The children of one daemon.

    Args:
        reactor: the reactor.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._children: set[Child] = set()
        self._empty: Deferred[None] | None = None

    def __len__(self) -> int:
        return len(self._children)

    def spawn(
        self,
        argv: Sequence[str | bytes],
        *,
        environment: Mapping[str, str],
        cwd: str | None = None,
        separate_stderr: bool = False,
        identity: Identity | None = None,
    ) -> Child:
        """Start a child on pipes.

        Args:
            argv: program and arguments.
            environment: all of the child's environment.
            cwd: its working directory.
            separate_stderr: give stderr a pipe of its own instead of stdout's.
            identity: whom the child runs as; None for the user that this process is.

        Raises:
            OSError: it cannot be started, or there are too many.
        """
        self._check_room()
        with _no_ignored_signals():
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if separate_stderr else subprocess.STDOUT,
                bufsize=0,
                env=environment,
                cwd=cwd,
                start_new_session=True,
                **_user(identity),
            )
        assert process.stdin is not None and process.stdout is not None
        stderr = _take(process.stderr) if process.stderr is not None else -1
        stdout = _take(process.stdout)
        with contextlib.suppress(OSError):
            fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        return self._add(process, _take(process.stdin), stdout, stderr)

    def spawn_on_pty(
        self,
        argv: Sequence[str | bytes],
        *,
        environment: Mapping[str, str],
        cwd: str | None = None,
        raw: bool = False,
        helper: str = "/bin/sh",
        identity: Identity | None = None,
    ) -> Child:
        """Start a child with a new terminal as stdin, stdout, stderr and controlling terminal.

        Args:
            argv: program and arguments.
            environment: all of the child's environment.
            cwd: its working directory.
            raw: no echo, no translation of line ends.
            helper: the shell that opens the terminal in the child.
            identity: whom the child runs as, and whose the terminal is; None for the user that this process is.

        Returns:
            The child; its ``stdin`` and ``stdout`` are two descriptors of the terminal's other side.

        Raises:
            OSError: it cannot be started, or there are too many.
        """
        self._check_room()
        master, slave, name = open_pty(raw=raw)
        second = -1
        try:
            second = os.dup(master)
            if identity is not None:
                os.fchown(slave, identity.uid, -1)
            with _no_ignored_signals():
                process = subprocess.Popen(
                    [helper, "-c", _OPEN_TTY, name, *argv],
                    stdin=slave,
                    stdout=slave,
                    stderr=slave,
                    env=environment,
                    cwd=cwd,
                    start_new_session=True,
                    **_user(identity),
                )
        except BaseException:
            os.close(master)
            if second >= 0:
                os.close(second)
            raise
        finally:
            os.close(slave)
        return self._add(process, second, master, -1)

    def _check_room(self) -> None:
        if len(self._children) >= MAX_CHILDREN:
            raise OSError(11, f"{MAX_CHILDREN} processes are running already")

    def _add(self, process: subprocess.Popen[bytes], stdin: int, stdout: int, stderr: int) -> Child:
        child = Child(process, stdin, stdout, stderr)
        self._children.add(child)
        try:
            fd = os.pidfd_open(process.pid)
        except OSError:
            self._poll(child)
        else:
            self._reactor.addReader(_PidFd(self, child, fd))
        return child

    def _poll(self, child: Child) -> None:
        if child.poll():
            self._forget(child)
        else:
            self._reactor.callLater(POLL_S, self._poll, child)

    def _forget(self, child: Child) -> None:
        self._children.discard(child)
        if not self._children and self._empty is not None:
            empty, self._empty = self._empty, None
            empty.callback(None)

    def stop(self) -> Deferred[None]:
        """Hang up on every child, kill what is left after a moment; fires when all are reaped."""
        done: Deferred[None] = Deferred()
        if not self._children:
            done.callback(None)
            return done
        self._empty = done
        self._signal_all(signal.SIGHUP)
        killer = self._reactor.callLater(STOP_GRACE_S, self._signal_all, signal.SIGKILL)

        def stopped(result: None) -> None:
            if killer.active():
                killer.cancel()

        return done.addCallback(stopped)

    def _signal_all(self, number: int) -> None:
        for child in list(self._children):
            child.signal_group(number)


@contextlib.contextmanager
def _no_ignored_signals() -> Iterator[None]:
    """A child started in here has the job signals at their defaults.

    What is ignored stays ignored through ``exec``, and a daemon in the background of a script, or under nohup,
    ignores some: its shells could be neither interrupted nor hung up. What has a handler does not.
    """
    changed = []
    for number in _JOB_SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            # Elsewhere than in the main thread handlers cannot be set.
            with contextlib.suppress(ValueError):
                signal.signal(number, _nothing)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_IGN)


def _nothing(_number: int, _frame: object) -> None:
    """What an ignored signal does."""


def _take(file: IO[bytes]) -> int:
    """The descriptor of ``file``, as one that closing the file does not close."""
    fd = os.dup(file.fileno())
    file.close()
    return fd


def open_pty(*, raw: bool = False) -> tuple[int, int, str]:
    """A new terminal: (our side, the child's side, the path of the child's side)."""
    master, slave = pty.openpty()
    if raw:
        tty.setraw(slave, termios.TCSANOW)
    return master, slave, os.ttyname(slave)


def set_window_size(fd: int, rows: int, columns: int, width: int, height: int) -> None:
    """Tell a terminal its size in characters and pixels; its foreground job gets SIGWINCH."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, width, height))


def _user(identity: Identity | None) -> dict[str, Any]:
    """``Popen``'s arguments that make the child that user."""
    if identity is None:
        return {}
    return {"user": identity.uid, "group": identity.gid, "extra_groups": identity.groups}
