"""``twistd anbox-netd``."""

from __future__ import annotations

import grp
import os
import sys
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.python import usage

from anbox_tw.errors import AnboxError
from anbox_tw.netd.controllers import DEFAULT_ANDROID
from anbox_tw.netd.daemon import DEFAULT_SOCKET_DIR, SOCKETS, Netd, inherited_sockets
from anbox_tw.netd.namespace import NetworkNamespace
from anbox_tw.netd.nft import DEFAULT_TABLE
from anbox_tw.network.adopted import initial_environment
from anbox_tw.network.twistd import CommandOptions, CommandService

__all__ = ["Options", "makeService"]


class Options(CommandOptions):
    """Command line of ``twistd anbox-netd``."""

    synopsis = "[--socket-dir DIR] [--netns NAME] [--dry-run]"
    longdesc = """\
Android's netd for Linux hosts: the framework's commands to the kernel, the kernel's events to the framework.

Serves the sockets netd, dnsproxyd, mdns and fwmarkd. Sockets that Android's init (ANDROID_SOCKET_NAME) or systemd
(LISTEN_FDS, told apart by FileDescriptorName=) has made are used instead of those in --socket-dir. Everything that
is changed in the kernel is brought back when the daemon stops.

Talk to it with 'anbox ndc'. Needs root, or CAP_NET_ADMIN over the namespace.
"""

    optParameters = [
        ["socket-dir", "d", DEFAULT_SOCKET_DIR, "Directory of the sockets; made when it is missing."],
        ["sockets", None, ",".join(SOCKETS), "Which sockets to serve, with commas between."],
        [
            "netns",
            "n",
            None,
            "Serve another network namespace: a name of 'ip netns', or a path such as /proc/PID/ns/net.",
        ],
        ["mode", "m", "0660", "Permission bits of the sockets, octal."],
        ["group", "g", None, "Group of the sockets, name or number."],
        [
            "table",
            None,
            DEFAULT_TABLE,
            "Name of our nftables table; another one for each daemon of a namespace.",
        ],
        ["hosts", None, "/etc/hosts", "Hosts file for lookups; empty for none."],
        [
            "resolv-conf",
            None,
            "/etc/resolv.conf",
            "Name servers of lookups outside any network; empty for none.",
        ],
        ["android", None, str(DEFAULT_ANDROID), "Speak as this release where they differ: 5, 6 or 7."],
    ]
    optFlags = [
        ["dry-run", None, "Change nothing in the kernel; print what would be done on standard output."],
        ["undo", None, "Undo what a daemon that was killed has left, and end."],
        ["legacy-dns", None, "Answer getaddrinfo in the layout of Android 4.4 and 5."],
    ]

    def postOptions(self) -> None:
        """Check what was given.

        Raises:
            UsageError: a value cannot be used.
        """
        names = tuple(name.strip() for name in str(self["sockets"]).split(",") if name.strip())
        unknown = [name for name in names if name not in SOCKETS]
        if unknown or not names:
            raise usage.UsageError(
                f"--sockets: {unknown[0] if unknown else 'nothing'!r}; there are {', '.join(SOCKETS)}"
            )
        self["sockets"] = names
        try:
            self["mode"] = int(str(self["mode"]), 8)
        except ValueError:
            raise usage.UsageError(f"--mode: {self['mode']!r} is no octal number") from None
        if not 0 <= self["mode"] <= 0o777:
            raise usage.UsageError(f"--mode: {self['mode']:o} has more than permission bits")
        if self["android"] not in ("5", "6", "7"):
            raise usage.UsageError(f"--android: {self['android']!r}; there are 5, 6 and 7")
        self["android"] = int(self["android"])
        self["gid"] = self._group(self["group"])
        if not str(self["table"]).isidentifier():
            raise usage.UsageError(f"--table: {self['table']!r} cannot be the name of a table")
        self["socket-dir"] = os.path.abspath(self["socket-dir"])
        try:
            self["inherited"] = inherited_sockets(initial_environment())
        except AnboxError as error:
            raise usage.UsageError(str(error)) from error

    def _group(self, text: Any) -> int:
        if text is None:
            return -1
        if str(text).isdigit():
            return int(text)
        try:
            return grp.getgrnam(str(text)).gr_gid
        except KeyError:
            raise usage.UsageError(f"--group: there is no group {text!r}") from None


class _Root(CommandService):
    """Makes the daemon when it starts, where a mistake ends in words."""

    def __init__(self, options: Options, reactor: Any) -> None:
        self._options = options
        self._twisted_reactor = reactor
        self.netd: Netd | None = None
        super().__init__("anbox-netd", options, reactor, when_ready=self._ready)

    def _ready(self) -> Deferred[None]:
        assert self.netd is not None
        ready = self.netd.when_ready()
        if self._options["undo"]:
            ready.addCallback(lambda _: self._twisted_reactor.stop())
        return ready

    def prepare(self) -> None:
        config = self._options
        self.netd = Netd(
            self._twisted_reactor,
            socket_dir=config["socket-dir"],
            namespace=NetworkNamespace(config["netns"] or ""),
            sockets=config["sockets"],
            adopted=config["inherited"],
            mode=config["mode"],
            gid=config["gid"],
            table=config["table"],
            legacy_dns=bool(config["legacy-dns"]),
            android=config["android"],
            dry_run=_show if config["dry-run"] else None,
            hosts=config["hosts"] or None,
            system_resolver=config["resolv-conf"] or None,
        )
        self.netd.setServiceParent(self)


def _show(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def makeService(config: Options) -> IService:
    """Make the daemon from its options."""
    from twisted.internet import reactor

    return _Root(config, reactor)
