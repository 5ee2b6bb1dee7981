"""Android's init language: reading, checking, printing.

``parse`` turns text into an ``RcConfig`` and never stops at an error; ``RcLoader`` reads files and follows
imports; ``lint`` finds what init would take and then fail on; ``format_config`` prints a configuration back.
The rules are those of Android 7.0.
"""

from anbox_tw.android.rc.expand import expand, references
from anbox_tw.android.rc.formatter import format_config, format_service, quote
from anbox_tw.android.rc.lint import lint
from anbox_tw.android.rc.loader import RcLoader, read_rc
from anbox_tw.android.rc.model import (
    Action,
    Command,
    Import,
    Location,
    Problem,
    RcConfig,
    RcService,
    SocketSpec,
    Trigger,
)
from anbox_tw.android.rc.parser import RcParser, parse
from anbox_tw.android.rc.ueventd import UeventdConfig, is_ueventd_file, parse_ueventd

__all__ = [
    "Action",
    "Command",
    "Import",
    "Location",
    "Problem",
    "RcConfig",
    "RcLoader",
    "RcParser",
    "RcService",
    "SocketSpec",
    "Trigger",
    "UeventdConfig",
    "expand",
    "format_config",
    "format_service",
    "is_ueventd_file",
    "lint",
    "parse",
    "parse_ueventd",
    "quote",
    "read_rc",
    "references",
]
