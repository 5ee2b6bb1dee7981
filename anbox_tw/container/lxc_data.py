"""The instance's data directories as an LXC container's root needs them, and ``bindtab``.

What is in ``data`` belongs to the guest, which may be hostile: it is walked without following links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.idmap import IdMap
from anbox_tw.container.lxc_staging import open_beneath, write_beneath
from anbox_tw.container.spec import ContainerSpec

__all__ = ["DataDirectories", "is_trusted", "read_bindtab"]

MAX_BINDTAB_BYTES = 64 * 1024
MAX_BINDTAB_LINES = 256

SYSTEM = 1000  # AID_SYSTEM, AID_SHELL, AID_SDCARD_RW: android_filesystem_config.h
SHELL = 2000
SDCARD_RW = 1015

TREE: tuple[tuple[str, int, int, int], ...] = (
    # below data_path/data: path, uid and gid in the container, mode; as Android's init.rc makes them
    ("", SYSTEM, SYSTEM, 0o771),
    ("local", 0, 0, 0o751),
    ("local/tmp", SHELL, SHELL, 0o771),
    ("media", SDCARD_RW, SDCARD_RW, 0o770),
    ("media/0", SDCARD_RW, SDCARD_RW, 0o770),
)


def is_trusted(path: str, *, uid: int = 0) -> bool:
    """Nobody but root and ``uid`` can change what is at ``path``, nor what its directories are.

    A sticky directory of all, such as ``/tmp``, may be on the way but not the last.
    """
    last = True
    while True:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            pass
        else:
            others = status.st_mode & 0o022 and not (status.st_mode & stat.S_ISVTX and not last)
            if status.st_uid not in (0, uid) or others or stat.S_ISLNK(status.st_mode):
                return False
        if path in ("/", ""):
            return True
        path, last = os.path.dirname(path), False


def _make_path(path: str) -> None:
    """Make a directory and those above it that are missing, passable for all whatever our umask is."""
    if os.path.isdir(path):
        return
    _make_path(os.path.dirname(path))
    os.mkdir(path, 0o711)
    os.chmod(path, 0o711)  # noqa: S103  # what is in it has modes of its own


class DataDirectories:
    """``data``, ``cache`` and ``logs`` of an instance."""

    def __init__(self, spec: ContainerSpec, idmap: IdMap) -> None:
        """Args:
        spec: names them.
        idmap: whom they are to belong to.
        """
        self.spec = spec
        self.idmap = idmap

    def make(self) -> None:
        """Make what is missing; what a container could not write to becomes its own.

        Raises:
            DiagnosedError: the data path cannot be used (``ANBOX-C004``).
        """
        path = self.spec.data_path
        if not is_trusted(path, uid=os.geteuid()):
            raise DiagnosedError.of(
                "ANBOX-C004",
                f"the data path {path} cannot be trusted",
                "another user could put links into it, or it has one on the way",
                "choose a directory that only root can write to, by its real path: --data-path /var/lib/anbox",
            )
        try:
            _make_path(path)
            # A set-uid program that the guest leaves in /data must be out of all users' reach: its root is the
            # host's, or that of every other mapped container. LXC, as a mapped root, only passes through.
            os.chown(path, -1, self.idmap.root_gid if self.idmap else 0)
            os.chmod(path, 0o710 if self.idmap else 0o700)
            for name, mode in (("data", 0o771), ("cache", 0o770), ("logs", 0o755)):
                owner = (0, 0) if name == "logs" else (self.idmap.root_uid, self.idmap.root_gid)
                with open_beneath(path, name, create=True, mode=mode, owner=owner) as directory:
                    if name == "cache":
                        self._own(directory, *owner)
            for name, uid, gid, mode in TREE:
                owner = (self.idmap.host_uid(uid), self.idmap.host_gid(gid))
                with open_beneath(self.spec.data_dir, name, create=True, mode=mode, owner=owner) as directory:
                    self._own(directory, *owner)
        except OSError as error:
            raise DiagnosedError.of(
                "ANBOX-C004", f"the data path {path} cannot be used", str(error)
            ) from error

    def _own(self, directory: int, uid: int, gid: int) -> None:
        """Give a directory to the container that belongs to an id it does not know."""
        status = os.fstat(directory)
        base = self.idmap.root_uid
        foreign = not self.idmap.maps_uid(status.st_uid) or (not self.idmap and status.st_uid >= 100_000)
        if foreign and status.st_uid != base:
            os.fchown(directory, uid, gid)

    def opened(self) -> Iterator[tuple[str, int]]:
        """(target, descriptor) of each; the caller closes the descriptors."""
        for target, base, below in (
            ("data", self.spec.data_dir, ""),
            ("cache", self.spec.cache_dir, ""),
            ("sdcard", self.spec.data_dir, "media/0"),
        ):
            try:
                with open_beneath(base, below) as directory:
                    yield target, os.dup(directory)
            except OSError as error:
                raise DiagnosedError.of(
                    "ANBOX-C004", f"the instance's /{target} cannot be used", str(error)
                ) from error

    def write(self, path: str, data: bytes) -> None:
        """Write a file below ``data``, whatever links the guest has put there.

        Raises:
            DiagnosedError: it cannot be written (``ANBOX-C004``).
        """
        owner = (self.idmap.host_uid(SYSTEM), self.idmap.host_gid(SYSTEM))
        try:
            write_beneath(self.spec.data_dir, path, data, owner)
        except OSError as error:
            raise DiagnosedError.of("ANBOX-C004", f"/data/{path} cannot be written", str(error)) from error


def read_bindtab(data_path: str) -> tuple[list[str], list[str]]:
    """The administrator's own mount lines: those of ``data_path/bindtab`` that begin with ``/``.

    Returns:
        The lines as LXC takes them, and notes.
    """
    path = f"{data_path}/bindtab"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{path} is left out: {error.strerror}"]
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            return [], [f"{path} is left out: it must be a file that only root can write to"]
        text = file.read(MAX_BINDTAB_BYTES).decode("utf-8", "surrogateescape")
    lines = [line.strip() for line in text.splitlines() if line.startswith("/")]
    return lines[:MAX_BINDTAB_LINES], []
