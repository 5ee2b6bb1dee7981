"""``twistd anbox-init``: Android's init on a host, or as pid 1 of a container."""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.python import usage

from anbox_tw.android._wire import SOCKET_DIRECTORY, Namespace, sun_path
from anbox_tw.android.errors import AddressError

__all__ = ["InitService", "Options", "makeService"]


class Options(usage.Options):
    """What can be set."""

    synopsis = "[options] --rc FILE [--rc FILE...]"
    longdesc = """
    Reads Android init files (the language of 7.0), makes each service's sockets, starts, watches and restarts
    the services, and serves the properties. It works without root: what the kernel does not grant is left out
    and told. 'anbox rc check FILE' tests a file; 'anbox rc status' shows a running init.
    """
    optParameters = [
        ["socket-dir", "d", SOCKET_DIRECTORY, "Directory of the sockets; stands for /dev/socket."],
        ["persist-dir", None, None, "Directory that keeps persist.* properties (/data/property on Android)."],
        ["root", None, "/", "Directory that stands for / in imports and in commands that touch files."],
        ["console", None, None, "Terminal for services with the option 'console', such as /dev/console."],
        ["shutdown-timeout", None, 5.0, "Seconds between SIGTERM and SIGKILL when stopping.", float],
        ["grants", None, "auto", "What the kernel refuses: 'strict' ends the service, as on Android; 'lenient' "
         "leaves it out and says so; 'auto' is strict for a full root."],
    ]  # fmt: skip
    optFlags = [
        [
            "system",
            None,
            "The system is ours to change: mount, hostname, ifup, writes below /proc and /sys are done.",
        ],
        ["output", None, "Services keep standard output and error (otherwise /dev/null, as on Android)."],
        ["no-status", None, "Make no status socket."],
    ]
    compData = usage.Completions()

    def __init__(self) -> None:
        super().__init__()
        self["rc"] = []
        self["property"] = {}
        self["export"] = {}

    def opt_rc(self, path: str) -> None:
        """An rc file, or a directory of them; may be repeated."""
        self["rc"].append(path)

    def _pair(self, key: str, text: str) -> None:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise usage.UsageError(f"--{key} {text}: give NAME=VALUE")
        self[key][name] = value

    def opt_property(self, text: str) -> None:
        """NAME=VALUE: a property set before the files are read; may be repeated."""
        self._pair("property", text)

    def opt_export(self, text: str) -> None:
        """NAME=VALUE: a variable in every service's environment; may be repeated."""
        self._pair("export", text)

    opt_r = opt_rc
    opt_p = opt_property
    opt_e = opt_export

    def postOptions(self) -> None:
        """Check what can be checked before anything starts."""
        if not self["rc"]:
            raise usage.UsageError("give at least one --rc FILE")
        for path in self["rc"]:
            if not os.path.exists(path):
                raise usage.UsageError(f"--rc {path}: no such file")
        if self["grants"] not in ("auto", "strict", "lenient"):
            raise usage.UsageError(f"--grants {self['grants']}: use auto, strict or lenient")
        if self["shutdown-timeout"] < 0:
            raise usage.UsageError("--shutdown-timeout: give seconds, 0 or more")
        try:
            sun_path(
                "property_service", Namespace.RESERVED, socket_directory=os.path.abspath(self["socket-dir"])
            )
        except AddressError as error:
            raise usage.UsageError(f"--socket-dir: {error.cause}") from error


class InitService(MultiService):
    """Init and its status socket, stopped in the order that lets watchers see the end.

    Attributes:
        init: the supervisor.
        power: what ended it, once something did.
        exit_code: how a process that is this init exits, when somebody has decided that.
    """

    def __init__(self, init: Any, status: IService | None) -> None:
        """Put them together."""
        super().__init__()
        self.init = init
        self.status = status
        self.power: Any = None
        self.exit_code: int | None = None
        init.setServiceParent(self)
        if status is not None:
            # watchers see the end, and the socket is gone before its directory goes
            init.before_release.append(status.stopService)

    def startService(self) -> None:
        """Start init, then the window on it."""
        super().startService()
        if self.status is not None:
            self.status.startService()


def build(config: Options, reactor: Any, **extra: Any) -> InitService:
    """Build the services from options.

    Args:
        config: parsed options.
        reactor: the reactor.
        **extra: further arguments of ``Init``.
    """
    from anbox_tw.android.endpoints import AndroidServerEndpoint
    from anbox_tw.android.init.status import STATUS_SOCKET, StatusService
    from anbox_tw.android.init.supervisor import DEFAULT_PATH, Init
    from anbox_tw.android.localsocket import LocalAddress

    directory = os.path.abspath(config["socket-dir"])
    init = Init(
        reactor,
        files=[os.path.abspath(path) for path in config["rc"]],
        socket_directory=directory,
        properties=config["property"],
        persistent_directory=config["persist-dir"] and os.path.abspath(config["persist-dir"]),
        root=config["root"],
        system=bool(config["system"]),
        strict={"auto": None, "strict": True, "lenient": False}[config["grants"]],
        environment={"PATH": DEFAULT_PATH, **config["export"]},
        console=config["console"],
        inherit_output=bool(config["output"]),
        shutdown_timeout=config["shutdown-timeout"],
        adopt_orphans=True,
        **extra,
    )
    status = None
    if not config["no-status"]:
        address = LocalAddress(STATUS_SOCKET, Namespace.RESERVED, directory)
        status = StatusService(init, AndroidServerEndpoint(reactor, address, mode=0o660, backlog=16))
    return InitService(init, status)


def makeService(config: Options) -> InitService:
    """Build what twistd runs; a shutdown or reboot that the files ask for stops the reactor."""
    from twisted.internet import reactor

    stop: Any = reactor

    def power(command: Any) -> None:
        service.power = command
        stop.callLater(0, lambda: stop.running and stop.stop())

    service = build(config, reactor, on_power=power)
    return service
