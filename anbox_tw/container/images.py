"""Android images: what a file is, by its own bytes, and how it is mounted.

The kinds that the kernel mounts are squashfs (Anbox's own images), ext4 and EROFS (Android's). Others
that people have in their hands are recognised as well, to tell them what to do with it.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from typing import Any

import attrs
from twisted.logger import Logger

from anbox_tw.container.commands import Commands, Completed, find_tool
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.journal import Journal
from anbox_tw.container.undo import mounts_at, record_mount

__all__ = ["MOUNTABLE", "Image", "ImageMounter", "MountedImage", "inspect_image", "recognise"]

HEADER_BYTES = 0x8100  # the furthest magic number is a CD's, at 32 KiB
IMAGE_MOUNT_TIMEOUT_S = 45.0  # ext4 on a slow disk reads its group descriptors

MOUNTABLE = ("squashfs", "ext4", "erofs")
"""Kinds of images that can be a root file system."""

EXT4_MAGIC_OFFSET = 0x438
EROFS_MAGIC_OFFSET = 1024

_WRONG_KINDS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x3a\xff\x26\xed", "an Android sparse image", "unpack it: simg2img IMAGE android.img"),
    (0, b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip"),
    (0, b"\xfd7zXZ\x00", "compressed with xz", "unpack it with unxz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with unzstd"),
    (0, b"BZh", "compressed with bzip2", "unpack it with bunzip2"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it with unlz4"),
    (0, b"PK\x03\x04", "a ZIP archive", "unpack it and name the image that is in it"),
    (0, b"ANDROID!", "an Android boot image", "name the system image (system.img or android.img) instead"),
    (0, b"sqsh", "an old big-endian squashfs image", "make it anew with mksquashfs 4"),
    (0, b"QFI\xfb", "a QEMU disk image", "convert it: qemu-img convert -O raw IMAGE android.img"),
    (0, b"\x7fELF", "a program", "name a squashfs or ext4 image"),
    (0, b"#!", "a script", "name a squashfs or ext4 image"),
    (0x101, b"ustar", "a tar archive", "unpack it and give the directory as --rootfs DIR"),
    (0x200, b"EFI PART", "a whole disk with partitions", "name the image of its system partition"),
    (0x8001, b"CD001", "a CD image", "name the system.sfs or system.img that is in it"),
    (0x1000, b"gDla", "a super image of dynamic partitions", "unpack it with lpunpack and name system.img"),
)


@attrs.frozen
class Image:
    """What a file is.

    Attributes:
        path: the file.
        kind: one of `MOUNTABLE`.
        size: bytes of the file.
    """

    path: str
    kind: str
    size: int


def recognise(header: bytes, size: int) -> str:
    """The kind of an image by its first bytes.

    Args:
        header: the file's first `HEADER_BYTES`, or all of a shorter file.
        size: bytes of the file.

    Returns:
        One of `MOUNTABLE`.

    Raises:
        DiagnosedError: it is something else, or cut short (``ANBOX-C003``).
    """
    if not header:
        raise _wrong("the image is empty", "copy or download it again")
    needed = 0
    if header[:4] == b"hsqs" and len(header) >= 96:
        (major,) = struct.unpack_from("<H", header, 28)
        (needed,) = struct.unpack_from("<Q", header, 40)
        if major != 4:
            raise _wrong(f"the image is squashfs of version {major}", "make it anew with mksquashfs 4")
        kind = "squashfs"
    elif header[EXT4_MAGIC_OFFSET : EXT4_MAGIC_OFFSET + 2] == b"\x53\xef":
        (blocks_low,) = struct.unpack_from("<I", header, 0x404)
        (log_block,) = struct.unpack_from("<I", header, 0x418)
        (incompatible,) = struct.unpack_from("<I", header, 0x460)
        (blocks_high,) = struct.unpack_from("<I", header, 0x550)
        blocks = blocks_low | (blocks_high << 32 if incompatible & 0x80 else 0)
        needed = blocks << (10 + min(log_block, 6))  # 64 KiB is the biggest block that ext4 has
        kind = "ext4"
    elif header[EROFS_MAGIC_OFFSET : EROFS_MAGIC_OFFSET + 4] == b"\xe2\xe1\xf5\xe0":
        block_bits = header[EROFS_MAGIC_OFFSET + 12]
        (blocks,) = struct.unpack_from("<I", header, EROFS_MAGIC_OFFSET + 36)
        needed = blocks << min(block_bits, 16)
        kind = "erofs"
    else:
        raise _not_an_image(header)
    if needed > size:
        raise _wrong(
            f"the image is cut short: it should have {needed} bytes and has {size}",
            "copy or download it again",
        )
    return kind


def _wrong(why: str, cure: str) -> DiagnosedError:
    return DiagnosedError.of("ANBOX-C003", "the image is not one that can be mounted", why, cure)


def _not_an_image(header: bytes) -> DiagnosedError:
    for offset, magic, what, cure in _WRONG_KINDS:
        if header[offset : offset + len(magic)] == magic:
            return _wrong(f"it is {what}", cure)
    if not any(header):
        return _wrong("it begins with zeros only", "copy or download it again")
    text = header[:64].decode("latin-1")
    return _wrong(f"its first bytes are {text[:16]!r}", "give a squashfs, ext4 or EROFS image of Android")


def inspect_image(path: str) -> Image:
    """Look at an image file.

    Raises:
        DiagnosedError: it is missing (``ANBOX-C002``), or not an image (``ANBOX-C003``).
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise DiagnosedError.of(
            "ANBOX-C002",
            f"Android image does not exist at path {path}",
            "no such file",
            "give its path with --android-image, or run without an image: --rootfs host",
        ) from error
    except OSError as error:
        raise DiagnosedError.of(
            "ANBOX-C002",
            f"the Android image {path} cannot be read",
            str(error.strerror),
            f"check `ls -l {path}`",
        ) from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise _wrong(f"{path} is a directory", f"give it as --rootfs {path} instead")
        if not stat.S_ISREG(status.st_mode):
            raise _wrong(f"{path} is not a regular file", "give a squashfs or ext4 image")
        return Image(path, recognise(os.pread(descriptor, HEADER_BYTES, 0), status.st_size), status.st_size)
    finally:
        os.close(descriptor)


@attrs.frozen
class MountedImage:
    """An image that is mounted.

    Attributes:
        target: where.
        way: ``loop`` or ``squashfuse``.
        note: why it is not the usual way, or an empty string.
    """

    target: str
    way: str
    note: str = ""


class ImageMounter:
    """Mounts images read-only, through a loop device or through FUSE.

    A loop device is made by mount(8) with the kernel's *autoclear*: it goes away with its mount, also
    when we are killed between the two, so the mount is all that needs an entry in the journal.
    """

    _log = Logger()

    def __init__(
        self,
        commands: Commands,
        *,
        dev: str = "/dev",
        find: Callable[[str], str | None] = find_tool,
    ) -> None:
        """Args:
        commands: runs mount and squashfuse.
        dev: where device nodes are.
        find: looks up a tool.
        """
        self._commands = commands
        self._dev = dev
        self._find = find

    def has_loop(self) -> bool:
        """Loop devices can be made here."""
        return os.path.exists(f"{self._dev}/loop-control")

    async def mount(
        self, image: Image, target: str, journal: Journal, *, force_squashfuse: bool = False
    ) -> MountedImage:
        """Mount an image at an existing directory.

        Args:
            image: what `inspect_image` found.
            target: the directory.
            journal: where the mount is written down.
            force_squashfuse: use FUSE even where loop devices work.

        Raises:
            DiagnosedError: it cannot be mounted (``ANBOX-C020``), or squashfuse is missing.
        """
        if force_squashfuse and image.kind != "squashfs":
            raise DiagnosedError.of(
                "ANBOX-C020",
                "the image cannot be mounted with squashfuse",
                f"it is {image.kind}, and squashfuse mounts squashfs alone",
                "leave --force-squashfuse out",
            )
        if force_squashfuse:
            return await self._squashfuse(image, target, journal, "")
        note = ""
        if self.has_loop():
            options = "ro,loop,noload" if image.kind == "ext4" else "ro,loop"
            entry = record_mount(journal, target)
            result = await self._commands.run(
                ["mount", "--no-mtab", "-t", image.kind, "-o", options, "--", image.path, target],
                timeout=IMAGE_MOUNT_TIMEOUT_S,
            )
            if result.ok:
                return MountedImage(target, "loop")
            journal.done(entry)
            note = result.error_text
        else:
            note = f"{self._dev}/loop-control is missing"
        if image.kind != "squashfs" or not self._find("squashfuse"):
            raise DiagnosedError.of(
                "ANBOX-C020",
                f"the {image.kind} image could not be mounted",
                note,
                "load the loop module (`modprobe loop`)"
                + (", or install squashfuse" if image.kind == "squashfs" else "; see `dmesg` for the reason"),
            )
        self._log.warn("no loop mount ({why}): {path} goes through squashfuse", why=note, path=image.path)
        return await self._squashfuse(image, target, journal, f"squashfuse instead of a loop device: {note}")

    async def _squashfuse(self, image: Image, target: str, journal: Journal, note: str) -> MountedImage:
        entry = record_mount(journal, target)
        options = "ro,allow_other" if os.geteuid() == 0 else "ro"
        # It goes into the background by itself when the mount is there, and ends when it is unmounted.
        result: Completed = await self._commands.run(
            ["squashfuse", "-o", options, image.path, target], timeout=IMAGE_MOUNT_TIMEOUT_S
        )
        if not result.ok or mounts_at(target, journal.context) <= int(_depth(entry)):
            journal.done(entry)
            raise DiagnosedError.of(
                "ANBOX-C020",
                "the image could not be mounted with squashfuse",
                result.error_text,
                "check that /dev/fuse is there (`modprobe fuse`)",
            )
        return MountedImage(target, "squashfuse", note)


def _depth(entry: Any) -> Any:
    return entry.args.get("depth", 0)
