"""``twistd anbox-adbd``: makes this machine, container or directory a device for adb."""

from __future__ import annotations

import os
import secrets
import socket
import string
from typing import Any

from twisted.application.service import IService
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.usage import UsageError

from anbox_tw.adb._numbers import MAX_PORT, decimal
from anbox_tw.adb.auth import POLICIES, Authority
from anbox_tw.adb.daemon.adbd import AdbDaemon
from anbox_tw.adb.daemon.announce import PAIRING, PLAIN, TLS, AnnouncementService
from anbox_tw.adb.daemon.config import DaemonConfig
from anbox_tw.adb.daemon.jdwp import CONTROL_NAME
from anbox_tw.adb.daemon.service import AdbdService, PairingService
from anbox_tw.adb.keys import AdbKeyError, load_or_generate_key
from anbox_tw.adb.pairing import random_code
from anbox_tw.errors import HostLacks
from anbox_tw.network.twistd import CommandOptions, CommandService

__all__ = ["Options", "makeService"]

DEFAULT_ENDPOINT = "tcp:5555:interface=127.0.0.1"
_log = Logger()


class Options(CommandOptions):
    """Command line of ``twistd anbox-adbd``."""

    synopsis = "[--listen ENDPOINT]... [options]"
    longdesc = """An adbd. Whoever connects gets a shell as the user it runs as, so it listens on loopback unless told
otherwise: give --auth refuse and --keys, or TLS with pairing, before you open it to a
network. Try: twistd -n anbox-adbd, then: adb connect localhost:5555 && adb shell."""

    optParameters = [
        ["auth", "a", "open", "Who may enter: open (no authentication), accept (any key), refuse (only known keys)."],
        ["key-store", None, None, "File that keys are added to when they pair or are accepted, as adb_keys."],
        ["device-key", None, None, "The device's own key for TLS; made if missing. [~/.android/adbd_key]"],
        ["pair-listen", None, None, "Endpoint for pairing (adb pair), until one host has paired."],
        ["pairing-code", None, None, "The code to type; six random digits, written to the log, if not given."],
        ["guid", None, None, "The device's name for paired hosts. [adb-HOSTNAME-xxxxxx]"],
        ["root", "r", None, "Directory that push, pull and ls see as / and cannot leave."],
        ["shell", None, None, "The shell. [/system/bin/sh or /bin/sh]"],
        ["cwd", None, None, "Where shells start. [--root, else /]"],
        ["product", None, "anbox", "ro.product.name."],
        ["model", None, "Anbox", "ro.product.model."],
        ["device", None, "anbox", "ro.product.device."],
        ["packages", None, None, "Directory that 'adb install' puts packages into."],
    ]  # fmt: skip
    optFlags = [
        [
            "debuggable",
            None,
            "As root: 'adb unroot' and 'adb root' change between root and the user shell (2000).",
        ],
        ["jdwp", None, "Listen for Java VMs on @jdwp-control, as a real device does."],
        [
            "mdns",
            None,
            "Announce the ports by mDNS; needs the extra 'mdns'. Their endpoints must be tcp:PORT.",
        ],
    ]
    compData = None

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self["tls-listen"] = []
        self["keys"] = []
        self["property"] = {}

    def opt_listen(self, endpoint: str) -> None:
        """Endpoint for hosts, for example tcp:5555 or unix:/run/adbd.sock; may be given several times. [tcp:5555 on loopback]"""
        self["listen"].append(endpoint)

    opt_l = opt_listen

    def opt_tls_listen(self, endpoint: str) -> None:
        """Endpoint for hosts that must use TLS, as Android's wireless debugging; may be given several times."""
        self["tls-listen"].append(endpoint)

    def opt_keys(self, path: str) -> None:
        """File of allowed keys, one per line, as adb_keys; may be given several times."""
        self["keys"].append(path)

    def opt_property(self, pair: str) -> None:
        """NAME=VALUE for getprop, where this machine has no such program; may be given several times."""
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"--property {pair}: write NAME=VALUE")
        self["property"][name] = value

    def postOptions(self) -> None:
        """Check what was given."""
        if self["auth"] not in POLICIES or self["auth"] == "ask":
            raise UsageError(f"--auth {self['auth']}: one of open, accept, refuse")
        for name in ("root", "cwd"):
            if self[name] is not None and not os.path.isdir(self[name]):
                raise UsageError(f"--{name} {self[name]}: there is no such directory")
        if self["shell"] is not None and not os.access(self["shell"], os.X_OK):
            raise UsageError(f"--shell {self['shell']}: there is no such program")
        for path in self["keys"]:
            if not os.access(path, os.R_OK):
                raise UsageError(f"--keys {path}: the file cannot be read")
        if self["pairing-code"] is not None and self["pair-listen"] is None:
            raise UsageError("--pairing-code needs --pair-listen ENDPOINT")
        if self["device-key"] is None:
            self["device-key"] = os.path.join(os.path.expanduser("~"), ".android", "adbd_key")
        if not self["listen"] and not self["tls-listen"]:
            self["listen"].append(DEFAULT_ENDPOINT)


def _endpoint(reactor: Any, option: str, text: str) -> IStreamServerEndpoint:
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, text)
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise UsageError(f"--{option} {text}: not an endpoint: {error}") from error
    return endpoint


def _guid() -> str:
    tail = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(6))
    return f"adb-{socket.gethostname()}-{tail}"


def _ports(config: Options) -> list[tuple[str, int]]:
    """What is announced: (service type, port).

    Raises:
        UsageError: an endpoint has no port that is known before.
    """
    found = []
    listed = [(PLAIN, text) for text in config["listen"]] + [(TLS, text) for text in config["tls-listen"]]
    if config["pair-listen"]:
        listed.append((PAIRING, config["pair-listen"]))
    for kind, text in listed:
        words = text.split(":")
        if words[0] not in ("tcp", "tcp6") or len(words) < 2 or not decimal(words[1], MAX_PORT):
            raise UsageError(f"--mdns: {text} is not tcp:PORT")
        found.append((kind, int(words[1])))
    return found


def makeService(config: Options) -> IService:
    """Build the services.

    Raises:
        UsageError: an endpoint or the device's key cannot be used.
    """
    try:
        return _make(config)
    except UsageError as error:
        config.refuse(error)


def _make(config: Options) -> CommandService:
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    authority = Authority(config["auth"], key_files=config["keys"], store=config["key-store"])
    optional: dict[str, Any] = {"shell": config["shell"]} if config["shell"] else {}
    settings = DaemonConfig(
        product=config["product"],
        model=config["model"],
        device=config["device"],
        authority=authority,
        root=config["root"],
        cwd=config["cwd"],
        packages=config["packages"],
        properties={
            "ro.product.name": config["product"],
            "ro.product.model": config["model"],
            "ro.product.device": config["device"],
            **config["property"],
        },
        jdwp=CONTROL_NAME if config["jdwp"] else None,
        **optional,
    )
    guid = config["guid"] or _guid()
    daemon = AdbDaemon(reactor, settings)
    if config["debuggable"] and not daemon.allow_root_and_unroot():
        raise UsageError("--debuggable: this process is not root, or has no user 2000 in its user namespace")
    service = AdbdService(reactor, daemon)
    for text in config["listen"]:
        service.listen(_endpoint(reactor, "listen", text))
    if config["tls-listen"] or config["pair-listen"]:
        try:
            key = load_or_generate_key(config["device-key"])
        except AdbKeyError as error:
            raise UsageError(str(error)) from error
        for text in config["tls-listen"]:
            service.listen(_endpoint(reactor, "tls-listen", text), tls_key=key)
        if config["pair-listen"]:
            code = config["pairing-code"] or random_code()
            endpoint = _endpoint(reactor, "pair-listen", config["pair-listen"])
            PairingService(reactor, endpoint, service.daemon, key, code, guid).setServiceParent(service)
            _log.info("pairing code: {code}", code=code)
    if config["mdns"]:
        try:
            announcement = AnnouncementService(reactor, guid, _ports(config), config["model"])
        except HostLacks as error:
            raise UsageError(str(error)) from error
        announcement.setServiceParent(service)
    service.finish()
    root = CommandService("anbox-adbd", config, reactor)
    service.setServiceParent(root)
    return root
