"""``twistd anbox-container``: the container manager as a command.

The flags of the original's ``anbox container-manager`` (``src/anbox/cmds/container_manager.cpp``)
keep their names and defaults; the others are ours.
"""

from __future__ import annotations

import grp
import os
import pwd
import zlib
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger
from twisted.python.usage import UsageError

from anbox_tw.container.authority import DEFAULT_DEVICES, Authority
from anbox_tw.container.backends import BACKENDS, all_kinds, default_backend, make_backends
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.guest_sockets.service import GuestSocketService, guest_socket_path
from anbox_tw.container.imagestore.store import resolve_image
from anbox_tw.container.manager import ContainerManager, ManagerSettings
from anbox_tw.container.service import ManagerService
from anbox_tw.container.spec import NetworkSpec
from anbox_tw.errors import AnboxError
from anbox_tw.netd.on_demand import OnDemandNetd
from anbox_tw.network import EndpointListener, RuntimePaths, UnixListener
from anbox_tw.network.adopted import systemd_endpoint
from anbox_tw.network.twistd import CommandOptions, CommandService
from anbox_tw.rpc import RpcFactory

__all__ = ["Options", "makeService"]

SOCKET_GROUP = "anbox"
"""Group that may connect to a root manager, where the host has it."""

ROOT_RUN_PATH = "/run/anbox/containers"

NETD_SOCKET_DIR = "/run/anbox-netd"
"""Where ``anbox ndc`` looks for the sockets of root's netd."""

ISOLATIONS = ("auto", "namespaces", "plain")

_log = Logger()


class Options(CommandOptions):
    """Command line of ``twistd anbox-container``."""

    synopsis = "[options]"
    longdesc = """Runs Android containers, and other Linux root file systems, for the sessions that ask for them.
As root it listens on /run/anbox-container.socket, otherwise below $XDG_RUNTIME_DIR; a second one at the same
place is refused. SIGTERM stops every container and undoes all that was made for it; after a crash the next
start does. Each option can also stand in the TOML file of --config: backend = "lxc"."""

    optParameters = [
        ["socket", "s", None, "Listen here: a path, or an endpoint such as systemd:domain=UNIX:index=0."],
        ["group", "g", None, "Group that may connect (the socket is 0660). [root: 'anbox' where it exists]"],
        ["backend", "b", None, "Default backend: process (no root needed) or lxc. [root: lxc, else process]"],
        ["isolation", None, "auto", "Of the backend process: auto, namespaces (refuse to run without) or plain."],
        ["runtime-dir", None, None, "Directory of what ends with the run. [$XDG_RUNTIME_DIR]"],
        ["data-path", None, None, "Where containers keep their data. [root: /var/lib/anbox]"],
        ["rootfs", None, None, "Root file system: 'host' (the host's own, nothing is written to it) or a directory."],
        ["android-image", None, None, "Android image: the name of one that 'anbox image' keeps, or a file. [DATA-PATH/android.img where it exists]"],
        ["container-network-address", None, None, "IPv4 address and prefix of the container. [192.168.250.2/24]"],
        ["container-network-gateway", None, None, "Gateway of the container. [192.168.250.1]"],
        ["container-network-dns-servers", None, None, "Name servers, separated by commas. [the host's]"],
        ["network", None, "auto", "auto, none (loopback alone) or host."],
        ["netd-socket-dir", None, None, "Directory of netd's sockets, for 'anbox ndc'. [root: /run/anbox-netd]"],
    ]  # fmt: skip
    optFlags = [
        ["privileged", None, "No id map: root in the container is root on the host."],
        ["use-rootfs-overlay", None, "Put DATA-PATH/rootfs-overlay over the root file system."],
        ["host-loopback", None, "10.0.2.2 leads containers to what listens on the host's 127.0.0.1."],
        ["force-squashfuse", None, "Mount images through squashfuse even where loop devices work."],
        ["daemon", None, "Accepted as the original's; whether to detach is twistd's -n."],
    ]
    compData = None

    def __init__(self) -> None:
        super().__init__()
        self["allow-device"] = []
        self["admin"] = []

    def opt_allow_device(self, pattern: str) -> None:
        """Let every caller give devices of this pattern to a container, for example '/dev/video*'. May be given several times."""
        self["allow-device"].append(pattern)

    def opt_admin(self, user: str) -> None:
        """A user who may do all that root may. May be given several times."""
        self["admin"].append(user)

    def parseArgs(self, *args: str) -> None:
        """No arguments."""
        if args:
            raise UsageError(f"there are no arguments, but here is {args[0]!r}")

    def postOptions(self) -> None:
        """Check and complete.

        Raises:
            UsageError: an option cannot be used.
        """
        for name, choices in (("backend", BACKENDS), ("isolation", ISOLATIONS)):
            if self[name] is not None and self[name] not in choices:
                raise UsageError(f"--{name} is {' or '.join(choices)}, not {self[name]!r}")
        if self["rootfs"] and self["android-image"]:
            raise UsageError("--rootfs and --android-image exclude each other")
        for name in ("data-path", "runtime-dir", "android-image", "rootfs", "netd-socket-dir"):
            if self[name] == "":
                raise UsageError(f"--{name} is empty")
        try:
            self["network-spec"] = NetworkSpec(
                mode=self["network"],
                address=self["container-network-address"],
                gateway=self["container-network-gateway"],
                dns=[one.strip() for one in (self["container-network-dns-servers"] or "").split(",")],
                host_loopback=bool(self["host-loopback"]),
            )
            self["authority"] = Authority(
                devices=[*DEFAULT_DEVICES, *self["allow-device"]], admin_uids=map(_uid_of, self["admin"])
            )
        except AnboxError as error:
            raise UsageError(f"{error.cause}: {error.cure}") from error
        self["gid"] = _gid_of(self["group"])
        if self["socket"] is not None and not self["socket"]:
            raise UsageError("--socket is empty")


def _gid_of(name: str | None) -> int:
    """The socket's group; -1: leave it."""
    if name is None:
        if os.geteuid() != 0:
            return -1
        try:
            return grp.getgrnam(SOCKET_GROUP).gr_gid
        except KeyError:
            return -1
    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(
            f"--group: there is no group {name!r}; make it with 'groupadd --system {name}'"
        ) from None


def _uid_of(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise UsageError(f"--admin: there is no user {name!r}") from None


class _Root(CommandService):
    """Checks what only a start can check."""

    def __init__(self, options: Options, reactor: Any) -> None:
        self._options = options
        self._manager: ContainerManager | None = None
        self._twisted_reactor = reactor
        super().__init__("anbox-container", options, reactor, when_ready=self._ready)

    def _ready(self) -> Deferred[None]:
        if self._manager is None:
            raise AssertionError("unreachable")
        return self._manager.recover()

    def prepare(self) -> None:
        options, reactor = self._options, self._twisted_reactor
        root = os.geteuid() == 0
        paths = None
        if not root or options["runtime-dir"]:
            paths = RuntimePaths.find(runtime_dir=options["runtime-dir"])
            if not os.path.isdir(paths.root):
                os.mkdir(paths.root, 0o700)
        run_path = ROOT_RUN_PATH if paths is None else f"{paths.root}/containers"
        usual = (paths or RuntimePaths("/run")).data_path(privileged=root)
        data_path = os.path.abspath(options["data-path"] or usual)
        if data_path != usual:
            # Two managers with data of their own may each have an instance of the same name.
            run_path += f"-{zlib.crc32(os.fsencode(data_path)):08x}"
        backend = options["backend"] or default_backend(root)
        kind, image = "image", ""
        if options["android-image"]:
            kind, image = resolve_image(options["android-image"])
        rootfs = image if kind == "rootfs" else options["rootfs"]
        settings = ManagerSettings(
            data_path=data_path,
            run_path=run_path,
            backend=backend,
            rootfs=_absolute(rootfs) if rootfs != "host" else "host",
            image=image if kind == "image" else "",
            privileged=bool(options["privileged"]),
            use_rootfs_overlay=bool(options["use-rootfs-overlay"]),
            force_squashfuse=bool(options["force-squashfuse"]),
            network=options["network-spec"],
        )
        for what, path, there in (
            ("Android image", settings.image, os.path.isfile),
            ("root file system", settings.rootfs if settings.rootfs != "host" else "", os.path.isdir),
        ):
            if path and not there(path):
                raise DiagnosedError.of("ANBOX-C002", f"{what} does not exist at path {path}")
        backends = make_backends(reactor, backend, isolation=options["isolation"], root=root)
        _usable_data_path(data_path, root)
        self._manager = ContainerManager(
            reactor, settings, backends, authority=options["authority"], kinds=all_kinds()
        )
        where = options["socket"]
        if where is None:
            where = (paths or RuntimePaths("/run")).manager_socket(privileged=root)

        def listener(factory: RpcFactory) -> Any:
            if ":" in where and not where.startswith(("/", ".")):
                endpoint = systemd_endpoint(reactor, where) or serverFromString(reactor, where)
                return EndpointListener(endpoint, factory, name="container-manager", clock=reactor)
            return UnixListener(
                reactor,
                os.path.abspath(where),
                factory,
                mode=0o660,
                gid=options["gid"],
                name="container-manager",
            )

        service = ManagerService(reactor, self._manager, listener)
        service.setServiceParent(self)
        plain = ":" not in where or where.startswith(("/", "."))
        beside = (
            os.path.abspath(where)
            if plain
            else (paths or RuntimePaths("/run")).manager_socket(privileged=root)
        )
        guests = GuestSocketService(reactor, self._manager, guest_socket_path(beside), gid=options["gid"])
        guests.setServiceParent(self)
        # The network's commands for this host, for root alone; nothing of it runs before somebody asks.
        netd_dir = options["netd-socket-dir"] or (NETD_SOCKET_DIR if paths is None else paths.netd)
        OnDemandNetd(reactor, os.path.abspath(netd_dir)).setServiceParent(self)
        _log.info(
            "container manager at {socket}, backend {backend}, data in {data_path}",
            socket=where,
            backend=backend,
            data_path=data_path,
        )


def _absolute(path: str | None) -> str:
    return os.path.abspath(path) if path else ""


def _usable_data_path(path: str, root: bool) -> None:
    """Make it if it is missing.

    Raises:
        DiagnosedError: it cannot be used (``ANBOX-C004``).
    """
    try:
        # A container's root has another uid and must be able to pass through; what is in it is guarded by itself.
        mode = 0o711 if root else 0o700
        if not os.path.isdir(path):
            os.makedirs(path, exist_ok=True)
            os.chmod(path, mode)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", path)
    except OSError as error:
        raise DiagnosedError.of("ANBOX-C004", "the data path cannot be used", str(error)) from error


def makeService(options: Options) -> CommandService:
    """The services of one container manager, for twistd.

    Nothing is touched before the start; what is wrong then is told on standard error, with its cure and
    the exit code of its kind (`anbox_tw.errors.ExitCode`).
    """
    from twisted.internet import reactor

    return _Root(options, reactor)
