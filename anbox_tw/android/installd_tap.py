"""``twistd anbox-installd``: installd on a directory."""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import IService
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.python import usage

from anbox_tw.android.endpoints import parse_control_server
from anbox_tw.android.init.plan import has_every_id
from anbox_tw.android.installd._commands import RELEASES
from anbox_tw.android.installd.service import TOOLS, InstalldService
from anbox_tw.android.installd.tree import Tree

__all__ = ["Options", "makeService"]

SOCKET = "installd"
BACKLOG = "5"  # cmds/installd/installd.cpp: listen(lsocket, 5)
INIT_SOCKET = f"android-control:{SOCKET}:backlog={BACKLOG}"


class Options(usage.Options):
    """What can be set."""

    synopsis = "--data DIR [options]"
    longdesc = """
    Keeps the data tree of Android applications: makes, measures, clears and deletes their directories for the
    package manager that asks over the installd socket. No request reaches a file outside the given directories.
    """
    optParameters = [
        ["data", "d", None, "Directory that stands for /data; made when it is missing."],
        ["expand", None, None, "Directory that stands for /mnt/expand (default: DATA/.expand)."],
        ["system", None, None, "Directory that stands for /system, whose code sizes may be asked for."],
        ["listen", "l", INIT_SOCKET,
         "Endpoint: the socket of our init, or for example android:installd:namespace=reserved:mode=600."],
        ["release", "r", "7.0", "Whose commands: " + ", ".join(RELEASES) + "."],
        ["owners", None, "auto", "'keep' sets owners as Android does, 'ignore' leaves all files ours; 'auto' "
         "keeps them for a full root."],
    ]  # fmt: skip
    optFlags = [
        ["jit-profiles", None, "Make profiles for applications, as with dalvik.vm.usejitprofiles=true."]
    ]

    def __init__(self) -> None:
        super().__init__()
        self["tool"] = {}

    def opt_tool(self, text: str) -> None:
        """NAME=PROGRAM: an external tool (dexopt, patchoat, idmap, aapt, profman); may be repeated."""
        name, equals, program = text.partition("=")
        if not equals or name not in TOOLS:
            raise usage.UsageError(f"--tool {text}: give NAME=PROGRAM with a name of {', '.join(TOOLS)}")
        if not os.access(program, os.X_OK):
            raise usage.UsageError(f"--tool {text}: {program} cannot be run")
        self["tool"][name] = os.path.abspath(program)

    def postOptions(self) -> None:
        """Check what can be checked before anything starts."""
        if not self["data"]:
            raise usage.UsageError("give --data DIR")
        if self["release"] not in RELEASES:
            raise usage.UsageError(f"--release {self['release']}: use one of {', '.join(RELEASES)}")
        if self["owners"] not in ("auto", "keep", "ignore"):
            raise usage.UsageError(f"--owners {self['owners']}: use auto, keep or ignore")
        try:
            _endpoint(None, self["listen"])
        except Exception as error:
            raise usage.UsageError(f"--listen {self['listen']}: {error}") from error


def _endpoint(reactor: Any, text: str) -> IStreamServerEndpoint:
    """The endpoint that ``text`` describes.

    The default is built without Twisted's plugins: a container of a checkout sees our package alone, and not the
    plugin file beside it that makes ``android-control:`` known.
    """
    if text == INIT_SOCKET:
        return parse_control_server(reactor, SOCKET, backlog=BACKLOG)
    endpoint: IStreamServerEndpoint = serverFromString(reactor, text)
    return endpoint


def makeService(config: Options) -> IService:
    """Build what twistd runs."""
    from twisted.internet import reactor

    return build(config, reactor)


def build(config: Options, reactor: Any) -> InstalldService:
    """Build the service from options; makes the directories."""
    data = os.path.abspath(config["data"])
    expand = os.path.abspath(config["expand"] or os.path.join(data, ".expand"))
    for directory, mode in ((data, 0o771), (expand, 0o771)):
        if not os.path.isdir(directory):
            os.makedirs(directory)
            os.chmod(directory, mode)
    roots = {"/data": data, "/mnt/expand": expand}
    if config["system"]:
        roots["/system"] = os.path.abspath(config["system"])
    tree = Tree(roots, keep_owners={"auto": has_every_id(), "keep": True, "ignore": False}[config["owners"]])
    return InstalldService(
        reactor,
        tree,
        _endpoint(reactor, config["listen"]),
        release=config["release"],
        tools=config["tool"],
        jit_profiles=bool(config["jit-profiles"]),
    )
