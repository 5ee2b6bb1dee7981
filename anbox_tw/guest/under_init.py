"""What the guest does differently as a service of Android's init."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from anbox_tw.android.errors import PropertyError
from anbox_tw.android.properties.client import set_property, socket_directory
from anbox_tw.android.properties.service import SOCKET_NAME
from anbox_tw.errors import AnboxError

__all__ = ["MARK", "reboot", "tell_init", "under_init"]

MARK = "ANBOX_SERVICE"
"""Set in the guest's environment by the rc file that starts it."""


def under_init() -> bool:
    """Whether an init of ours started this process and serves properties."""
    return bool(os.environ.get(MARK)) and os.path.exists(os.path.join(socket_directory(), SOCKET_NAME))


def tell_init(properties: Mapping[str, str]) -> None:
    """Set all of ``properties`` at init. Blocks: call it in a thread.

    One that init refuses, because it is read-only and set already or is none, stays as it is.

    Raises:
        NotRunning: init is not there.
    """
    # what says that booting is finished comes when all the others are there
    for name in sorted(properties, key=lambda name: (name == "sys.boot_completed", name)):
        try:
            set_property(name, properties[name])
        except PropertyError:
            continue


def reboot(stop: Callable[[], object]) -> None:
    """End the container, so that whoever runs it starts it again.

    Args:
        stop: ends this process: enough where it is the whole container.
    """
    if under_init():
        try:
            set_property("sys.powerctl", "reboot")
            return
        except AnboxError:
            pass
    stop()
