"""The commands of the ``netd`` socket, one class each; `register_all` puts them on a listener.

The replies are those of AOSP ``system/netd/server/CommandListener.cpp`` (android-7.0), to the byte.
"""

from __future__ import annotations

from anbox_tw.netd.commands.interface import InterfaceCommand
from anbox_tw.netd.commands.network import NetworkCommand, ResolverCommand
from anbox_tw.netd.commands.policy import BandwidthCommand, FirewallCommand, IdletimerCommand, StrictCommand
from anbox_tw.netd.commands.services import (
    ClatdCommand,
    IpFwdCommand,
    ListTtysCommand,
    NatCommand,
    PppdCommand,
    SoftapCommand,
    TetherCommand,
)
from anbox_tw.netd.controllers import Controllers
from anbox_tw.netd.listener import FrameworkListener

__all__ = ["COMMANDS", "register_all"]

COMMANDS = (
    InterfaceCommand,
    IpFwdCommand,
    TetherCommand,
    NatCommand,
    ListTtysCommand,
    PppdCommand,
    SoftapCommand,
    BandwidthCommand,
    IdletimerCommand,
    ResolverCommand,
    FirewallCommand,
    ClatdCommand,
    NetworkCommand,
    StrictCommand,
)


def register_all(listener: FrameworkListener, controllers: Controllers) -> None:
    """Register every command on a listener."""
    for command in COMMANDS:
        listener.register(command(controllers))
