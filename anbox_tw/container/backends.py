"""The backends a manager can have on this host."""

from __future__ import annotations

import os
from typing import Any

from anbox_tw.container.journal import UndoKinds
from anbox_tw.container.lxc import LxcBackend
from anbox_tw.container.lxc_undo import add_lxc_kinds
from anbox_tw.container.process import ProcessBackend
from anbox_tw.container.undo import default_kinds
from anbox_tw.errors import ConfigError, HostLacks
from anbox_tw.interfaces import IContainerBackend

__all__ = ["BACKENDS", "all_kinds", "default_backend", "make_backends"]

BACKENDS = ("process", "lxc")
"""Every backend's name."""


def default_backend(root: bool | None = None) -> str:
    """The backend of a manager that was not told: ``lxc`` for root, else ``process``."""
    return "lxc" if (os.geteuid() == 0 if root is None else root) else "process"


def make_backends(
    reactor: Any, wanted: str, *, isolation: str = "auto", root: bool | None = None
) -> dict[str, IContainerBackend]:
    """Make what this user can use; nothing of the host is touched.

    Args:
        reactor: for time and processes.
        wanted: the default backend, which must be among them.
        isolation: of the backend ``process``.
        root: whether we are root; None asks.

    Raises:
        ConfigError: there is no such backend or isolation.
        HostLacks: the wanted one needs root.
    """
    if wanted not in BACKENDS:
        raise ConfigError(f"there is no backend {wanted[:32]!r}", f"choose one of {', '.join(BACKENDS)}")
    root = os.geteuid() == 0 if root is None else root
    backends: dict[str, IContainerBackend] = {"process": ProcessBackend(reactor, isolation=isolation)}
    if root:
        backends["lxc"] = LxcBackend(reactor)
    if wanted not in backends:
        raise HostLacks("the backend 'lxc' needs root", "start the manager as root, or use --backend process")
    return backends


def all_kinds() -> UndoKinds:
    """How everything that any backend makes is undone."""
    return add_lxc_kinds(default_kinds())
