"""The connection banner and the feature names in it (AOSP ``transport.cpp``, ``adb.cpp``)."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

__all__ = ["DELAYED_ACK", "DEVICE_FEATURES", "HOST_FEATURES", "SERVER_FEATURES", "Banner"]

DELAYED_ACK = "delayed_ack"

HOST_FEATURES: tuple[str, ...] = (
    "shell_v2",
    "cmd",
    "stat_v2",
    "ls_v2",
    "fixed_push_mkdir",
    "apex",
    "abb",
    "fixed_push_symlink_timestamp",
    "abb_exec",
    "remount_shell",
    "track_app",
    "sendrecv_v2",
    "sendrecv_v2_brotli",
    "sendrecv_v2_lz4",
    "sendrecv_v2_zstd",
    "sendrecv_v2_dry_run_send",
    "openscreen_mdns",
    "devicetracker_proto_format",
    "devraw",
    "app_info",
    "server_status",
)
"""What adb 36 puts into its CNXN, in its order."""

SERVER_FEATURES: tuple[str, ...] = (*HOST_FEATURES, "libusb", "push_sync")
"""What adb 36 answers to ``host:host-features``."""

DEVICE_FEATURES: tuple[str, ...] = (
    "shell_v2",
    "cmd",
    "stat_v2",
    "ls_v2",
    "fixed_push_mkdir",
    "apex",
    "abb",
    "fixed_push_symlink_timestamp",
    "abb_exec",
    "remount_shell",
    "track_app",
    "sendrecv_v2",
    "sendrecv_v2_brotli",
    "sendrecv_v2_lz4",
    "sendrecv_v2_zstd",
    "sendrecv_v2_dry_run_send",
    "delayed_ack",
    "devraw",
    "app_info",
)
"""Everything our own adbd can do when its optional codecs are installed."""

_TYPES = frozenset({"host", "device", "bootloader", "recovery", "sideload", "rescue"})
_FORBIDDEN = frozenset(":;=,")
_PROPERTY_KEYS = {"ro.product.name": "product", "ro.product.model": "model", "ro.product.device": "device"}


def _list(features: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(features))


@attrs.frozen
class Banner:
    """Who speaks on one end of a transport.

    Attributes:
        type: ``host``, ``device``, ``bootloader``, ``recovery``, ``sideload`` or ``rescue``.
        product: ``ro.product.name``.
        model: ``ro.product.model``.
        device: ``ro.product.device``.
        features: feature names, in the order they were given, each once.
    """

    type: str = "host"
    product: str = ""
    model: str = ""
    device: str = ""
    features: tuple[str, ...] = attrs.field(default=(), converter=_list)

    @features.validator
    def _check_features(self, _attribute: object, value: tuple[str, ...]) -> None:
        for name in value:
            if not name or _FORBIDDEN.intersection(name):
                raise ValueError(f"not a feature name: {name!r}")

    @classmethod
    def parse(cls, payload: bytes | bytearray) -> Banner:
        """Read a CNXN payload; never fails, as adb itself takes anything.

        Only the third ``:`` field holds properties, pairs that are not ``key=value`` are left
        out, an unknown type counts as ``host``, and a trailing NUL (Android <= 6) is dropped.
        """
        text = bytes(payload).replace(b"\0", b"").decode("utf-8", "replace")
        fields = text.split(":")
        values: dict[str, str] = {}
        features: list[str] = []
        for pair in fields[2].split(";") if len(fields) > 2 else ():
            parts = pair.split("=")
            if len(parts) != 2:
                continue
            key, value = parts
            if key == "features":
                features = [name for name in value.split(",") if name]
            elif key in _PROPERTY_KEYS:
                values[_PROPERTY_KEYS[key]] = value
        return cls(type=fields[0] if fields[0] in _TYPES else "host", features=features, **values)

    def encode(self) -> bytes:
        """The CNXN payload. Characters that would end a value early become ``_``."""
        pairs = []
        if self.type != "host":
            for key, name in _PROPERTY_KEYS.items():
                value = "".join("_" if char in ":;=\0" else char for char in getattr(self, name))
                pairs.append(f"{key}={value}")
        pairs.append(f"features={','.join(self.features)}")
        return f"{self.type}::{';'.join(pairs)}".encode()

    def has(self, feature: str) -> bool:
        """Whether ``feature`` is named in this banner."""
        return feature in self.features
