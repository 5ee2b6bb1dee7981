"""Records of the sync protocol (AOSP ``file_sync_protocol.h``), for both ends. Pure."""

from __future__ import annotations

import os
from struct import Struct

__all__ = [
    "DATA",
    "DENT_V1",
    "DENT_V1_FIELDS",
    "DENT_V2",
    "DENT_V2_FIELDS",
    "DONE",
    "FAIL",
    "FLAG_DRY_RUN",
    "HEADER",
    "LIST_V1",
    "LIST_V2",
    "LSTAT_V1",
    "LSTAT_V2",
    "MAX_CHUNK",
    "MAX_NAME",
    "MAX_PATH",
    "OKAY",
    "QUIT",
    "RECV_V1",
    "RECV_V2",
    "SEND_V1",
    "SEND_V2",
    "STAT_V1",
    "STAT_V2",
    "STAT_V2_FIELDS",
    "header",
    "pack_stat_v2",
]

LSTAT_V1 = b"STAT"
STAT_V2 = b"STA2"
LSTAT_V2 = b"LST2"
LIST_V1 = b"LIST"
LIST_V2 = b"LIS2"
DENT_V1 = b"DENT"
DENT_V2 = b"DNT2"
SEND_V1 = b"SEND"
SEND_V2 = b"SND2"
RECV_V1 = b"RECV"
RECV_V2 = b"RCV2"
DONE = b"DONE"
DATA = b"DATA"
OKAY = b"OKAY"
FAIL = b"FAIL"
QUIT = b"QUIT"

MAX_CHUNK = 64 * 1024
"""Largest DATA chunk in either direction (``SYNC_DATA_MAX``)."""
MAX_PATH = 1024
"""Longest path of a request, in bytes."""
MAX_NAME = 255
"""Longest name of a directory entry, in bytes."""
FLAG_DRY_RUN = 0x80000000

HEADER = Struct("<4sI")
STAT_V1 = Struct("<4sIII")
"""id, mode, size, mtime."""
DENT_V1_FIELDS = Struct("<4sIIII")
"""id, mode, size, mtime, name length."""
STAT_V2_FIELDS = Struct("<4sIQQIIIIQqqq")
"""id, error, dev, ino, mode, nlink, uid, gid, size, atime, mtime, ctime."""
DENT_V2_FIELDS = Struct("<4sIQQIIIIQqqqI")
"""The same and a name length."""

_U32 = 0xFFFFFFFF


def header(kind: bytes, value: int) -> bytes:
    """An id and a length (or time, or status)."""
    return HEADER.pack(kind, value & _U32)


def pack_stat_v2(kind: bytes, status: os.stat_result | None, error: int = 0) -> bytes:
    """A v2 record; with an error all else is zero."""
    if status is None:
        return STAT_V2_FIELDS.pack(kind, error, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    return STAT_V2_FIELDS.pack(
        kind,
        0,
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_nlink & _U32,
        status.st_uid,
        status.st_gid,
        status.st_size,
        int(status.st_atime),
        int(status.st_mtime),
        int(status.st_ctime),
    )
