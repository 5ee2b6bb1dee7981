"""What an adbd is and may do."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping
from typing import Any

import attrs

from anbox_tw.adb.auth import Authority
from anbox_tw.adb.banner import DEVICE_FEATURES, Banner
from anbox_tw.adb.daemon import compression
from anbox_tw.adb.daemon.commands import CommandFactory
from anbox_tw.adb.daemon.control import DeviceControl
from anbox_tw.adb.daemon.identity import Identity
from anbox_tw.adb.daemon.logs import LogBuffer
from anbox_tw.adb.daemon.screen import ScreenSource
from anbox_tw.adb.keys import AdbKey

__all__ = ["DaemonConfig"]

_SHELLS = ("/system/bin/sh", "/bin/mksh", "/bin/bash", "/bin/sh")
"""Android's, and then what is nearest to it: scripts for mksh use ``trap SIGINT``, ``[[`` and arrays, which dash has not."""

_TMPDIR = "/data/local/tmp"


def _default_shell() -> str:
    return next((path for path in _SHELLS if os.access(path, os.X_OK)), _SHELLS[-1])


@attrs.define(kw_only=True)
class DaemonConfig:
    """Settings of one ``AdbDaemon``.

    Attributes:
        product: ``ro.product.name`` of the banner.
        model: ``ro.product.model`` of the banner.
        device: ``ro.product.device`` of the banner.
        features: feature names to offer; those whose codec is not installed are left out.
        authority: which hosts may enter.
        tls_key: with it, hosts are taken through TLS; without, known by AUTH.
        shell: the shell that runs commands.
        cwd: working directory of shells, or None for ``root`` or ``/``.
        root: directory that file services see as ``/`` and cannot leave, or None for all files.
        environment: what children inherit before Android's own variables are set; None for ours.
        max_payload: largest payload to agree on, in bytes.
        control: what hosts may do to the device.
        properties: what ``getprop`` shows where the device has no such program.
        logs: what ``logcat`` shows where the device has no such program.
        packages: where ``cmd package``, ``pm`` and ``abb_exec:package`` lead; a directory for a
            ``PackageStore``, an object with its ``command`` method, or None for no packages.
        commands: further commands that adbd answers itself, by name.
        screen: gives the picture for ``framebuffer:``; None refuses it, as a device without a screen does.
        identity: whom shells and file services act as; None for the user that this process is.
        jdwp: address of the control socket for Java VMs, ``jdwp.CONTROL_NAME`` on a device, or None.
    """

    product: str = "anbox"
    model: str = "Anbox"
    device: str = "anbox"
    features: tuple[str, ...] = DEVICE_FEATURES
    authority: Authority = attrs.field(factory=Authority)
    tls_key: AdbKey | None = None
    shell: str = attrs.field(factory=_default_shell)
    cwd: str | None = None
    root: str | None = None
    environment: Mapping[str, str] | None = None
    max_payload: int = 1024 * 1024
    control: DeviceControl = attrs.field(factory=DeviceControl)
    properties: Mapping[str, str] = attrs.field(factory=dict)
    logs: LogBuffer = attrs.field(factory=LogBuffer)
    packages: str | Any | None = None
    commands: Mapping[str, CommandFactory] = attrs.field(factory=dict)
    screen: ScreenSource | None = None
    identity: Identity | None = None
    jdwp: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.cwd is None:
            self.cwd = self.root or "/"

    def banner(self) -> Banner:
        """The banner that hosts see."""
        missing = {f"sendrecv_v2_{name}" for name in ("brotli", "lz4", "zstd")}
        missing -= {f"sendrecv_v2_{name}" for name in compression.available()}
        return Banner(
            "device",
            product=self.product,
            model=self.model,
            device=self.device,
            features=[name for name in self.features if name not in missing],
        )

    def shell_environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """A child's environment, as ``shell_service.cpp`` makes it."""
        environment = dict(os.environ if self.environment is None else self.environment)
        uid = os.geteuid() if self.identity is None else self.identity.uid
        try:
            user = pwd.getpwuid(uid)
            name, home = user.pw_name, user.pw_dir
        except KeyError:
            name, home = str(uid), "/"
        if self.identity is not None:
            name, home = self.identity.name or name, self.identity.home
        environment.update(
            HOME=home, HOSTNAME=socket.gethostname(), LOGNAME=name, USER=name, SHELL=self.shell
        )
        if os.path.isdir(_TMPDIR) and os.access(_TMPDIR, os.W_OK):
            environment["TMPDIR"] = _TMPDIR
        environment.setdefault("PATH", os.defpath)
        environment.update(extra)
        return environment
