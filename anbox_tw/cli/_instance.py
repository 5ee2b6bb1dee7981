"""Which instance a command means: its directories, its lock, and who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from anbox_tw.errors import AlreadyRunning, AnboxError, ConfigError
from anbox_tw.network.paths import RuntimePaths

__all__ = ["Holder", "Instance", "Lock", "instance_options", "runtime_option"]

F = TypeVar("F", bound=Callable[..., Any])

LOCK_BYTES = 65536
"""More than a lock file of ours ever holds."""

TAKE_ATTEMPTS = 6
TAKE_AGAIN_S = 0.02
"""Who only looks holds the lock for an instant, too: ``take`` tries this often before it says that it is held."""


def runtime_option(command: F) -> F:
    """Add ``--runtime-dir`` to a command."""
    return click.option(
        "--runtime-dir",
        type=click.Path(),
        envvar="ANBOX_RUNTIME_DIR",
        metavar="DIR",
        help="Where sockets live.  [default: $XDG_RUNTIME_DIR, or a private directory]",
    )(command)


def _complete_instance(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The instances of this user whose names begin so."""
    try:
        known = Instance.all(ctx.params.get("runtime_dir"))
        return [where.name for where in known if where.name.startswith(incomplete)]
    except AnboxError:
        return []  # a shell that completes has no use for errors


def instance_options(command: F) -> F:
    """Add ``--instance`` and ``--runtime-dir`` to a command."""
    named = click.option(
        "--instance",
        "-i",
        default="default",
        envvar="ANBOX_INSTANCE",
        show_default=True,
        metavar="NAME",
        help="Which instance.",
        shell_complete=_complete_instance,
    )(command)
    return runtime_option(named)


@dataclass(frozen=True)
class Holder:
    """The ``anbox up`` that holds an instance."""

    pid: int
    command: str
    data_path: str | None = None


@dataclass(frozen=True)
class Instance:
    """One instance as the command line sees it."""

    name: str
    paths: RuntimePaths

    @classmethod
    def locate(cls, name: str, runtime_dir: str | None, *, create: bool = False) -> Instance:
        """Find the directories of an instance.

        Args:
            name: the instance's name.
            runtime_dir: where the user said that sockets live.
            create: make the directories.

        Raises:
            anbox_tw.errors.AnboxError: the name or a directory cannot be used.
        """
        paths = RuntimePaths.find(name, runtime_dir)
        if create:
            paths.make_directories()
        return cls(name, paths)

    @classmethod
    def all(cls, runtime_dir: str | None) -> Iterator[Instance]:
        """Every instance that has left a trace in the runtime directory."""
        default = cls.locate("default", runtime_dir)
        names = set()
        if default.traced:
            names.add("default")
        instances = Path(default.paths.root) / "instances"
        if instances.is_dir():
            names.update(entry.name for entry in instances.iterdir() if entry.is_dir())
        for name in sorted(names):
            yield cls.locate(name, runtime_dir)

    @property
    def traced(self) -> bool:
        """Whether there is anything of this instance in the runtime directory."""
        return self.control.exists() or self.lock_path.exists()

    @property
    def control(self) -> Path:
        """The session's control socket."""
        return Path(self.paths.control)

    @property
    def manager(self) -> Path:
        """The socket of the manager that ``anbox up`` brings along."""
        return Path(self.paths.sockets) / "manager"

    @property
    def lock_path(self) -> Path:
        """The file that a running ``anbox up`` holds locked."""
        return Path(self.paths.base) / "up.lock"

    def log_dir(self, data_path: str | None = None) -> Path:
        """Where the logs of both managers and the container go."""
        return Path(data_path or self.paths.data_path()) / "logs"

    def tidy(self) -> None:
        """Take away what a killed process has left (its sockets, its lock) and the directories that are empty now.

        Only for who holds the instance, or knows that nobody does.
        """
        for directory in (self.paths.sockets, self.paths.input, self.paths.netd):
            _unlink_dead_sockets(Path(directory))
        if self.lock_path.exists() and self.holder() is None:
            self.lock_path.unlink(missing_ok=True)
        for path in (self.paths.sockets, self.paths.input, self.paths.netd):
            _rmdir(path)
        self.tidy_above()

    def tidy_above(self) -> None:
        """Take away the instance's directory and those above it, where they are ours and empty.

        Harmless whoever holds the instance: the lock lies in its directory.
        """
        below = [
            self.paths.base,
            f"{self.paths.root}/instances",
            self.paths.root,
        ]
        if Path(self.paths.runtime_dir).name.startswith("anbox-runtime-"):
            below.append(self.paths.runtime_dir)  # made by us, where there was no XDG_RUNTIME_DIR
        for path in below:
            _rmdir(path)

    @property
    def option(self) -> str:
        """What to add to an ``anbox`` command to mean this instance."""
        return "" if self.name == "default" else f" --instance {self.name}"

    def holder(self) -> Holder | None:
        """Who runs this instance by ``anbox up``, if anybody does."""
        try:
            descriptor = os.open(self.lock_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _read_holder(descriptor)
        else:
            return None
        finally:
            os.close(descriptor)

    def take(self, data_path: str | None = None) -> Lock:
        """Become the one who runs this instance.

        Args:
            data_path: where its data is, if not in the usual place; told to those who ask.

        Raises:
            anbox_tw.errors.AlreadyRunning: somebody else does.
            anbox_tw.errors.ConfigError: the lock file cannot be written.
        """
        for left in reversed(range(TAKE_ATTEMPTS)):
            try:
                descriptor = os.open(
                    self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
                )
            except OSError as error:
                if isinstance(error, FileNotFoundError) and left:
                    self.paths.make_directories()  # one that ends has just taken the directory away
                    continue
                raise ConfigError(
                    f"cannot write {self.lock_path}: {error.strerror}",
                    "choose a directory of your own with --runtime-dir",
                ) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = _read_holder(descriptor)
                os.close(descriptor)
                if left:
                    time.sleep(TAKE_AGAIN_S)
                    continue
                raise AlreadyRunning(
                    f"instance '{self.name}' is already running, pid {holder.pid}, command {holder.command}",
                    f"stop it with 'anbox down{self.option}', or start another one with --instance NAME",
                ) from None
            if _is_at(descriptor, self.lock_path):
                break
            os.close(descriptor)  # its last holder took the file away after we opened it: a lock nobody sees
        else:
            raise ConfigError(
                f"cannot lock {self.lock_path}: others take it away again and again", "try again"
            )
        # Who ended meanwhile may have taken away what we made before we held the lock.
        self.paths.make_directories()
        os.ftruncate(descriptor, 0)
        told = {"pid": os.getpid(), "command": " ".join(sys.argv), "data_path": data_path}
        os.pwrite(descriptor, json.dumps(told).encode(), 0)
        return Lock(descriptor, self.lock_path)


class Lock:
    """An instance that is ours until ``release``."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    def release(self) -> None:
        """Give the instance up and take the lock file away."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _rmdir(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # not empty, or not there


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _unlink_dead_sockets(directory: Path) -> None:
    """Unlink the UNIX sockets that nobody listens on."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if not path.is_socket():
            continue
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(1.0)
            try:
                link.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                continue


def _read_holder(descriptor: int) -> Holder:
    try:
        told = json.loads(os.pread(descriptor, LOCK_BYTES, 0) or b"{}")
        return Holder(int(told.get("pid", 0)), str(told.get("command", "unknown")), told.get("data_path"))
    except (ValueError, AttributeError):
        return Holder(0, "unknown")
