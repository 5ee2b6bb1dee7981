"""``twistd anbox-adb-server``: an adb server that unmodified adb clients use instead of their own."""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger
from twisted.python import usage

from anbox_tw.adb.keys import AdbKey, AdbKeyError, load_user_keys
from anbox_tw.adb.server._targets import parse_id
from anbox_tw.adb.server.discovery import PAIRING, MdnsDiscovery, auto_connected
from anbox_tw.adb.server.known_hosts import KnownHosts, default_known_hosts_path
from anbox_tw.adb.server.pairing import Pairer
from anbox_tw.adb.server.server import AdbServer, emulator_ports
from anbox_tw.errors import HostLacks
from anbox_tw.network.twistd import CommandOptions, CommandService

__all__ = ["Options", "makeService"]

DEFAULT_PORT = 5037
_log = Logger()


def default_endpoint(environment: dict[str, str]) -> str:
    """Where adb clients look, as an endpoint string (``ADB_SERVER_SOCKET``, ``ANDROID_ADB_SERVER_PORT``).

    Raises:
        usage.UsageError: a variable cannot be used.
    """
    socket = environment.get("ADB_SERVER_SOCKET", "")
    if socket:
        kind, _, rest = socket.partition(":")
        if kind == "localfilesystem" and rest:
            return f"unix:{rest.replace(':', chr(92) + ':')}:mode=600:lockfile=0"
        if kind == "tcp" and rest:
            host, _, port = rest.rpartition(":")
            return f"tcp:{port}:interface={host or '127.0.0.1'}".replace("localhost", "127.0.0.1")
        raise usage.UsageError(f"ADB_SERVER_SOCKET={socket}: only tcp: and localfilesystem: can be served")
    port = environment.get("ANDROID_ADB_SERVER_PORT", str(DEFAULT_PORT))
    number = parse_id(port)
    if number is None or not 0 < number < 65536:
        raise usage.UsageError(f"ANDROID_ADB_SERVER_PORT={port} is no port number")
    return f"tcp:{number}:interface=127.0.0.1"


class Options(CommandOptions):
    """The command line of ``twistd anbox-adb-server``."""

    synopsis = "[--listen ENDPOINT] [options]"
    longdesc = (
        "An adb server: 'adb devices', 'adb shell', 'adb forward' and the rest use it as they would their own. "
        "It knows devices by TCP ('adb connect', 'adb pair') and emulators; USB is not served. "
        "Keys are those of adb itself: ~/.android/adbkey and $ADB_VENDOR_KEYS."
    )
    optParameters = [
        [
            "listen",
            "l",
            None,
            "Endpoint for clients, for example tcp:5037:interface=127.0.0.1 or unix:/run/adb.sock. "
            "[default: what $ADB_SERVER_SOCKET or $ANDROID_ADB_SERVER_PORT say, else tcp:5037 on loopback]",
        ],
        ["emulator-host", None, None, "Where emulators run. [default: $ADBHOST, else 127.0.0.1]"],
    ]
    optFlags = [
        ["no-emulators", None, "Do not look for emulators at the start (as ADB_EMU=0)."],
        ["no-mdns", None, "Do not look for devices by mDNS (as ADB_MDNS=0); looking needs the extra 'mdns'."],
        [
            "no-keys",
            None,
            "Use no keys: devices that ask for authentication stay unauthorized, and none can be paired.",
        ],
    ]

    def postOptions(self) -> None:
        """Check what was given."""
        if self["listen"] is None:
            self["listen"] = default_endpoint(dict(os.environ))
        if self["emulator-host"] is None:
            self["emulator-host"] = os.environ.get("ADBHOST") or "127.0.0.1"


def makeService(config: Options) -> IService:
    """Build the server.

    Raises:
        usage.UsageError: the endpoint or a key file cannot be used.
    """
    try:
        return _make(config)
    except usage.UsageError as error:
        config.refuse(error)


def _make(config: Options) -> IService:
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    try:
        endpoint = serverFromString(reactor, config["listen"])
    except (ValueError, TypeError, IndexError) as error:
        raise usage.UsageError(f"--listen {config['listen']}: {error}") from error
    keys: list[AdbKey] = []
    if not config["no-keys"]:
        try:
            keys = load_user_keys()
        except AdbKeyError as error:
            raise usage.UsageError(str(error)) from error
    parent = CommandService("anbox-adb-server", config, reactor)
    ports = range(0) if config["no-emulators"] else emulator_ports()
    known_hosts = KnownHosts(default_known_hosts_path())
    discovery: MdnsDiscovery | None = None
    if not config["no-mdns"] and os.environ.get("ADB_MDNS") != "0":
        try:
            discovery = MdnsDiscovery(
                reactor,
                known_hosts,
                lambda serial, host, port: Deferred.fromCoroutine(
                    server.links.connect_service(serial, host, port)
                ),
                services=auto_connected(),
            )
        except HostLacks as error:
            _log.info("{error}: devices are not looked for", error=error)
    pairer = _pairer(reactor, keys, known_hosts, discovery)
    server = AdbServer(
        reactor,
        endpoint,
        keys=keys,
        pairing=pairer,
        mdns=discovery,
        emulators=ports,
        emulator_host=config["emulator-host"],
        on_kill=reactor.stop,
    )
    if discovery is not None:
        discovery.setServiceParent(parent)
    server.setServiceParent(parent)
    return parent


def _pairer(
    reactor: Any, keys: list[AdbKey], known_hosts: KnownHosts, discovery: MdnsDiscovery | None
) -> Pairer | None:
    if not keys:
        return None
    if discovery is None:
        return Pairer(reactor, keys[0], known_hosts)

    def resolve(name: str) -> tuple[str, int] | None:
        found = discovery.resolve(name, (PAIRING,))
        return None if found is None else (found.host, found.port)

    return Pairer(reactor, keys[0], known_hosts, resolve, discovery.paired)
