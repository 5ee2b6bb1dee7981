"""Where sockets and data of an instance are: one answer for manager, session, guest and commands."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

from anbox_tw.errors import ConfigError, PermissionRefused
from anbox_tw.network._published import MAX_PATH_BYTES

__all__ = ["DEFAULT_INSTANCE", "RuntimePaths", "check_instance_name", "find_runtime_dir", "private_directory"]

DEFAULT_INSTANCE: Final = "default"
# 32 characters keep every socket of an instance within the kernel's 107 bytes for a usual runtime directory
_INSTANCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
ROOT_MANAGER_SOCKET: Final = "/run/anbox-container.socket"
ROOT_DATA_PATH: Final = "/var/lib/anbox"


def check_instance_name(name: str) -> str:
    """Return ``name`` if it can be an instance's.

    Raises:
        ConfigError: it is not 1 to 32 letters, digits, ``-`` and ``_``, beginning with a letter or digit.
    """
    if not _INSTANCE.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of an instance",
            "use 1 to 32 letters, digits, - and _, with a letter or digit first",
        )
    return name


def private_directory(path: str) -> str:
    """Make ``path`` a directory that only we can enter, or check that it is one.

    Returns:
        The path.

    Raises:
        PermissionRefused: somebody else owns it or can enter it, or it cannot be made.
        ConfigError: it is a symbolic link or no directory.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise PermissionRefused(
            f"the private directory {path} cannot be made: {error.strerror}",
            "set XDG_RUNTIME_DIR or --runtime-dir",
        ) from error
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{path} is not a directory", "remove it, or set XDG_RUNTIME_DIR or --runtime-dir")
    if status.st_uid != os.geteuid():
        raise PermissionRefused(
            f"{path} belongs to uid {status.st_uid}, not to us (uid {os.geteuid()})",
            "set XDG_RUNTIME_DIR or --runtime-dir to a directory of your own",
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionRefused(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, so others may enter it",
            f"chmod 0700 {path}",
        )
    return path


def find_runtime_dir(
    given: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    run: str = "/run",
    tmp: str = "/tmp",  # noqa: S108  # used as a private 0700 directory that is checked
) -> str:
    """The directory below which all sockets of this user are.

    In this order: ``given`` (``--runtime-dir``), ``$XDG_RUNTIME_DIR``, and, on a bare shell that has none, a private
    directory of our own, ``/run/anbox-runtime-UID`` where we may write to ``/run`` and ``/tmp/anbox-runtime-UID``
    elsewhere; it is made when it is missing.

    Raises:
        ConfigError: the given directory is no directory.
        PermissionRefused: it cannot be written, or the private one is not ours alone.
    """
    environ = os.environ if environ is None else environ
    chosen, source = (
        (given, "--runtime-dir") if given else (environ.get("XDG_RUNTIME_DIR"), "XDG_RUNTIME_DIR")
    )
    if not chosen:
        return private_directory(f"{run if os.access(run, os.W_OK) else tmp}/anbox-runtime-{os.geteuid()}")
    chosen = os.path.abspath(chosen)
    if not os.path.isdir(chosen):
        raise ConfigError(f"{source} names {chosen}, which is not a directory", f"mkdir -m 0700 -p {chosen}")
    if not os.access(chosen, os.W_OK | os.X_OK):
        raise PermissionRefused(
            f"{source} names {chosen}, which we may not write to", "choose a directory of your own"
        )
    return chosen


def _checked_runtime(instance: RuntimePaths, attribute: object, value: str) -> None:
    if not os.path.isabs(value):
        raise ConfigError(f"the runtime directory {value!r} is not absolute")


def _checked_instance(instance: RuntimePaths, attribute: object, value: str) -> None:
    check_instance_name(value)


@frozen
class RuntimePaths:
    """The paths of one instance; nothing is made until `make_directories`.

    Attributes:
        runtime_dir: absolute; see `find_runtime_dir`.
        instance: ``default``, or another name.
    """

    runtime_dir: str = field(validator=_checked_runtime)
    instance: str = field(default=DEFAULT_INSTANCE, validator=_checked_instance)

    @classmethod
    def find(
        cls,
        instance: str = DEFAULT_INSTANCE,
        runtime_dir: str | None = None,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> RuntimePaths:
        """The paths below the directory that `find_runtime_dir` finds.

        Raises:
            ConfigError: the name, or the length of the longest socket path, cannot be used.
            PermissionRefused: as `find_runtime_dir`.
        """
        paths = cls(find_runtime_dir(runtime_dir, environ=environ), instance)
        paths.check_lengths()
        return paths

    @property
    def root(self) -> str:
        """``<runtime>/anbox``, common to all instances."""
        return f"{self.runtime_dir}/anbox"

    @property
    def base(self) -> str:
        """What holds the instance's ``sockets`` and ``input``."""
        return self.root if self.instance == DEFAULT_INSTANCE else f"{self.root}/instances/{self.instance}"

    @property
    def sockets(self) -> str:
        """The directory that is bound into the container."""
        return f"{self.base}/sockets"

    @property
    def qemu_pipe(self) -> str:
        """The socket behind the guest's ``/dev/qemu_pipe``."""
        return f"{self.sockets}/qemu_pipe"

    @property
    def anbox_bridge(self) -> str:
        """The socket behind the guest's ``/dev/anbox_bridge``."""
        return f"{self.sockets}/anbox_bridge"

    @property
    def anbox_audio(self) -> str:
        """The socket behind the guest's ``/dev/anbox_audio``."""
        return f"{self.sockets}/anbox_audio"

    @property
    def control(self) -> str:
        """The session's own control socket."""
        return f"{self.sockets}/control"

    @property
    def input(self) -> str:
        """The directory of the input devices' sockets."""
        return f"{self.base}/input"

    @property
    def netd(self) -> str:
        """The directory of the sockets of the manager's netd."""
        return f"{self.base}/netd"

    @property
    def rootless_manager_socket(self) -> str:
        """The manager's socket when it runs as this user."""
        return f"{self.root}/anbox-container.socket"

    def manager_socket(self, *, privileged: bool | None = None) -> str:
        """The manager's socket: `ROOT_MANAGER_SOCKET` for root, otherwise below the runtime directory.

        Args:
            privileged: whether the manager runs as root; None asks who we are.
        """
        privileged = os.geteuid() == 0 if privileged is None else privileged
        return ROOT_MANAGER_SOCKET if privileged else self.rootless_manager_socket

    def data_path(self, *, privileged: bool | None = None, environ: Mapping[str, str] | None = None) -> str:
        """Where the instance's data is kept unless ``--data-path`` says otherwise."""
        environ = os.environ if environ is None else environ
        privileged = os.geteuid() == 0 if privileged is None else privileged
        if privileged:
            root = ROOT_DATA_PATH
        else:
            home = environ.get("XDG_DATA_HOME") or os.path.join(
                environ.get("HOME") or os.path.expanduser("~"), ".local/share"
            )
            root = f"{home}/anbox"
        return root if self.instance == DEFAULT_INSTANCE else f"{root}/instances/{self.instance}"

    def check_lengths(self) -> None:
        """Raises `ConfigError` when a socket of the instance would have a path too long for the kernel."""
        longest = max((self.anbox_bridge, f"{self.input}/event99", self.rootless_manager_socket), key=len)
        length = len(os.fsencode(longest))
        if length > MAX_PATH_BYTES:
            raise ConfigError(
                f"the socket path {longest} has {length} bytes; the kernel takes at most {MAX_PATH_BYTES}",
                "choose a shorter runtime directory with --runtime-dir, or a shorter instance name",
            )

    def make_directories(self) -> None:
        """Make the instance's directories, each 0700 but ``input``, which is 0755.

        That one is seen in the container, whose users are others; nobody on the host passes the directories above it.

        Raises:
            PermissionRefused: one cannot be made, or is not ours alone.
        """
        below = [self.root]
        if self.instance != DEFAULT_INSTANCE:
            below += [f"{self.root}/instances", self.base]
        for path in [*below, self.sockets]:
            _own_directory(path)
        _own_directory(self.input, 0o755)


def _own_directory(path: str, mode: int = 0o700) -> None:
    # Below the runtime directory, which is private already: what exists keeps the mode that its maker chose.
    try:
        os.mkdir(path, mode)
        if mode & 0o077:
            os.chmod(path, mode)  # whatever the umask is
    except FileExistsError:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            raise ConfigError(f"{path} is not a directory", "remove it") from None
        if status.st_uid != os.geteuid():
            raise PermissionRefused(
                f"{path} belongs to uid {status.st_uid}, not to us (uid {os.geteuid()})",
                "remove it as its owner",
            ) from None
    except OSError as error:
        raise PermissionRefused(
            f"the directory {path} cannot be made: {error.strerror}", "choose another one with --runtime-dir"
        ) from error
