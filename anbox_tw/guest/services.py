"""The guest's services under Android's init: what process 1 of a container of ours is.

The guest proper (adbd and the bridge) is the service ``adbd``; ``installd`` comes when booting is finished, so that it
takes no time from it. Init restarts what dies, reaps what is left behind, and serves properties in ``/dev/socket``.
More services can be added in ``/data/local/anbox/init``, one or more rc files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from twisted.logger import Logger

from anbox_tw.android.errors import AddressError
from anbox_tw.android.init.process import run_init
from anbox_tw.android.init.status import STATUS_SOCKET, StatusService
from anbox_tw.android.init.supervisor import Init, PowerCommand
from anbox_tw.android.init_tap import InitService
from anbox_tw.android.rc import quote
from anbox_tw.guest.properties import write_properties

__all__ = ["EXTRA_FILES", "build", "fits", "guest_rc", "run"]

EXTRA_FILES = "data/local/anbox/init"
"""Below the root: rc files of the container's owner, if there are any."""

SHUTDOWN_TIMEOUT_S = 4.0
"""Between SIGTERM and SIGKILL: less than the backends give the container as a whole."""

_log = Logger()


def guest_rc(python: str, dev: str, root: str) -> str:
    """The guest's own rc file.

    Args:
        python: the interpreter.
        dev: where the session's sockets are.
        root: what the guest takes as ``/``.
    """
    words = {
        "python": quote(python),
        "dev": quote(dev.replace("$", "$$")),
        "root": quote(root.replace("$", "$$")),
        "data": quote(os.path.join(root, "data").replace("$", "$$")),
    }
    return """\
on boot
    class_start core

on property:sys.boot_completed=1
    class_start late_start

service adbd {python} -m anbox_tw.guest --alone --dev {dev} --root {root}
    class core
    setenv ANBOX_SERVICE adbd

service installd {python} -m anbox_tw.android.installd --data {data}
    class late_start
    socket installd stream 600 system system
""".format(**words)


def build(
    reactor: Any,
    power: Any,
    *,
    dev: str,
    root: str,
    environment: Mapping[str, str],
    system: bool,
) -> InitService:
    """Build process 1 of a container.

    Args:
        reactor: the reactor.
        power: called when ``powerctl`` asks for a shutdown or reboot.
        dev: where the session's sockets are; init's are in ``socket`` below it.
        root: what the guest takes as ``/``.
        environment: what every service gets.
        system: the system is the container's own to change.
    """
    extra = os.path.join(root, EXTRA_FILES)
    init = Init(
        reactor,
        texts=[("<guest>", guest_rc(sys.executable, dev, root))],
        files=[extra] if os.path.isdir(extra) else [],
        socket_directory=os.path.join(dev, "socket"),
        properties=_properties(os.path.join(root, "default.prop")),
        persistent_directory=os.path.join(root, "data/property"),
        root=root,
        system=system,
        environment=environment,
        inherit_output=True,
        adopt_orphans=True,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        on_power=power,
    )
    from anbox_tw.android._wire import Namespace
    from anbox_tw.android.endpoints import AndroidServerEndpoint
    from anbox_tw.android.localsocket import LocalAddress

    address = LocalAddress(STATUS_SOCKET, Namespace.RESERVED, init.socket_directory)
    service = InitService(init, StatusService(init, AndroidServerEndpoint(reactor, address, mode=0o660)))

    def observe(event: dict[str, Any]) -> None:
        # a guest that cannot even start will not the next time: its exit code is the container's, so that whoever
        # started the container hears of it at once
        if event["event"] != "exit" or event["name"] != "adbd" or init.stopping:
            return
        state = init.services["adbd"]
        how = str(event["how"])
        if state.starts == 1 and how.startswith("exited with status ") and how != "exited with status 0":
            service.exit_code = int(how.rpartition(" ")[2])
            reactor.callLater(0, power, PowerCommand(("shutdown", "")))

    init.observers.append(observe)
    init.store.changed.append(lambda name, value: _mirror(init, root))
    _quiet_reboot(init, service)
    return service


def _mirror(init: Init, root: str) -> None:
    """Keep what the shells' ``getprop`` reads, before whoever set the property is answered: 2 kB at most times."""
    try:
        write_properties(root, init.store.items())
    except OSError as error:
        init.note("getprop", f"the properties cannot be written: {error.strerror}")


def _quiet_reboot(init: Init, service: InitService) -> None:
    """A reboot that a host asks for is no failure: the container ends with 0 and its session starts it again."""

    def observe(event: dict[str, Any]) -> None:
        if event["event"] == "power" and event["command"] == "reboot" and not event["target"]:
            service.exit_code = 0

    init.observers.append(observe)


def _properties(path: str) -> dict[str, str]:
    """What the container's ``default.prop`` says, read by the store's own rules."""
    from anbox_tw.android.properties.store import PropertyStore

    store = PropertyStore()
    store.load_file(path)
    return dict(store.items())


def fits(dev: str) -> bool:
    """Whether init's sockets can have paths below ``dev``."""
    from anbox_tw.android._wire import Namespace, sun_path

    try:
        sun_path("property_service", Namespace.RESERVED, socket_directory=os.path.join(dev, "socket"))
    except AddressError:
        return False
    return True


def run(dev: str, root: str) -> int:
    """Be process 1; returns the exit code."""
    environment = dict(os.environ)
    return run_init(
        lambda reactor, power: build(
            reactor, power, dev=dev, root=root, environment=environment, system=os.getpid() == 1
        )
    )
