"""What a file is by its bytes, and mounting what can be mounted."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.container.commands import Commands, find_tool
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.images import Image, ImageMounter, inspect_image, recognise
from anbox_tw.container.journal import Journal, UndoContext
from anbox_tw.container.undo import default_kinds, mounts_at
from tests.support import need_root, need_tool


def squashfs_header(size: int, major: int = 4) -> bytes:
    header = bytearray(96)
    header[:4] = b"hsqs"
    struct.pack_into("<H", header, 28, major)
    struct.pack_into("<Q", header, 40, size)
    return bytes(header)


def ext4_header(blocks: int, log_block: int = 2) -> bytes:
    header = bytearray(4096)
    header[0x438:0x43A] = b"\x53\xef"
    struct.pack_into("<I", header, 0x404, blocks)
    struct.pack_into("<I", header, 0x418, log_block)
    return bytes(header)


def erofs_header(blocks: int, bits: int = 12) -> bytes:
    header = bytearray(4096)
    struct.pack_into("<I", header, 1024, 0xE0F5E1E2)
    header[1024 + 12] = bits
    struct.pack_into("<I", header, 1024 + 36, blocks)
    return bytes(header)


class RecogniseTests(SynchronousTestCase):
    def test_images_by_their_magic_numbers(self) -> None:
        self.assertEqual(recognise(squashfs_header(5000), 8192), "squashfs")
        self.assertEqual(recognise(ext4_header(2), 8192), "ext4")
        self.assertEqual(recognise(erofs_header(2), 8192), "erofs")

    def test_a_cut_image_is_told_from_a_whole_one(self) -> None:
        for header in (squashfs_header(8193), ext4_header(3), erofs_header(3)):
            error = self.assertRaises(DiagnosedError, recognise, header, 8192)
            self.assertEqual(error.code, "ANBOX-C003")
            self.assertIn("cut short", error.cause)
            self.assertIn("again", error.cure)

    def test_hostile_sizes_do_no_harm(self) -> None:
        for header in (ext4_header(0xFFFFFFFF, 0xFFFFFFFF), erofs_header(0xFFFFFFFF, 255)):
            self.assertRaises(DiagnosedError, recognise, header, 1 << 40)

    def test_other_files_are_named_with_a_cure(self) -> None:
        def at(offset: int, magic: bytes) -> bytes:
            data = bytearray(b"\1" * 0x8100)
            data[offset : offset + len(magic)] = magic
            return bytes(data)

        for data, what in (
            (at(0, b"\x3a\xff\x26\xed"), "simg2img"),
            (at(0, b"\x1f\x8b"), "gunzip"),
            (at(0, b"\xfd7zXZ\0"), "unxz"),
            (at(0, b"\x28\xb5\x2f\xfd"), "unzstd"),
            (at(0, b"PK\3\4"), "ZIP"),
            (at(0, b"ANDROID!"), "boot image"),
            (at(0, b"QFI\xfb"), "qemu-img"),
            (at(0, b"\x7fELF"), "program"),
            (at(0x101, b"ustar"), "--rootfs"),
            (at(0x200, b"EFI PART"), "partition"),
            (at(0x8001, b"CD001"), "CD image"),
            (squashfs_header(10, major=3), "mksquashfs"),
            (bytes(4096), "zeros"),
            (b"hello, this is text", "squashfs, ext4 or EROFS"),
            (b"", "empty"),
            (b"hs", "squashfs"),
        ):
            error = self.assertRaises(DiagnosedError, recognise, data, len(data))
            self.assertEqual(error.code, "ANBOX-C003")
            self.assertIn(what, f"{error.cause} {error.cure}")

    def test_what_is_not_a_file(self) -> None:
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        fifo = f"{directory}/fifo"
        os.mkfifo(fifo)
        for path, code, word in (
            (f"{directory}/missing", "ANBOX-C002", "does not exist at path"),
            (f"{directory}/missing/x", "ANBOX-C002", "does not exist"),
            (directory, "ANBOX-C003", "directory"),
            (fifo, "ANBOX-C003", "regular file"),
        ):
            error = self.assertRaises(DiagnosedError, inspect_image, path)
            self.assertEqual(error.code, code)
            self.assertIn(word, error.cause)
            self.assertTrue(error.cure)


class MountTests(TestCase):
    timeout = 60

    def setUp(self) -> None:
        need_root()
        self.directory = os.path.abspath(self.mktemp())
        os.makedirs(f"{self.directory}/tree/system/bin")
        with open(f"{self.directory}/tree/init", "w") as file:
            file.write("#!/bin/sh\n")
        os.mkdir(f"{self.directory}/mnt")
        self.target = f"{self.directory}/mnt"
        self.commands = Commands(reactor)
        self.journal = Journal(
            f"{self.directory}/journal", UndoContext(reactor, self.commands), default_kinds()
        )
        self.journal.open()
        self.addCleanup(self.journal.close)
        self.addCleanup(self.journal.undo_all)

    def squashfs(self) -> Image:
        need_tool("mksquashfs")
        path = f"{self.directory}/android.img"
        subprocess.run(["mksquashfs", f"{self.directory}/tree", path, "-quiet", "-no-progress"], check=True)
        return inspect_image(path)

    def ext4(self) -> Image:
        tool = find_tool("mkfs.ext4")
        self.assertTrue(tool, "mkfs.ext4")
        path = f"{self.directory}/system.img"
        subprocess.run(
            [str(tool), "-q", "-d", f"{self.directory}/tree", path, "4M"], check=True, capture_output=True
        )
        return inspect_image(path)

    def loops(self, path: str) -> str:
        return subprocess.run(["losetup", "-j", path], check=True, capture_output=True, text=True).stdout

    async def mounted(self, image: Image, **kwargs: Any) -> Any:
        return await self._mount(ImageMounter(self.commands), image, **kwargs)

    async def _mount(self, mounter: ImageMounter, image: Image, **kwargs: Any) -> Any:
        result = await mounter.mount(image, self.target, self.journal, **kwargs)
        self.assertEqual(os.listdir(self.target + "/system"), ["bin"])
        self.assertRaises(OSError, os.mkdir, f"{self.target}/new")
        return result

    async def undone(self, image: Image) -> None:
        await self.journal.undo_all()
        self.assertEqual(mounts_at(self.target, self.journal.context), 0)
        self.assertEqual(self.loops(image.path), "")

    async def test_squashfs_through_a_loop_device_that_goes_with_its_mount(self) -> None:
        image = self.squashfs()
        result = await self.mounted(image)
        self.assertEqual((result.way, result.note), ("loop", ""))
        self.assertIn("/dev/loop", self.loops(image.path))
        await self.undone(image)

    async def test_squashfs_through_fuse_when_forced(self) -> None:
        need_tool("squashfuse")
        image = self.squashfs()
        result = await self.mounted(image, force_squashfuse=True)
        self.assertEqual(result.way, "squashfuse")
        self.assertEqual(self.loops(image.path), "")
        await self.undone(image)

    async def test_squashfs_through_fuse_where_there_are_no_loop_devices(self) -> None:
        need_tool("squashfuse")
        image = self.squashfs()
        result = await self._mount(ImageMounter(self.commands, dev=self.directory), image)
        self.assertEqual(result.way, "squashfuse")
        self.assertIn("loop-control", result.note)
        await self.undone(image)

    async def test_ext4(self) -> None:
        image = self.ext4()
        self.assertEqual(image.kind, "ext4")
        shutil.rmtree(f"{self.directory}/tree")
        result = await ImageMounter(self.commands).mount(image, self.target, self.journal)
        self.assertEqual(result.way, "loop")
        self.assertIn("init", os.listdir(self.target))
        await self.undone(image)

    async def test_ext4_is_not_for_squashfuse(self) -> None:
        image = self.ext4()
        for mounter, force in (
            (ImageMounter(self.commands), True),
            (ImageMounter(self.commands, dev=self.directory), False),
        ):
            with self.assertRaises(DiagnosedError) as caught:
                await mounter.mount(image, self.target, self.journal, force_squashfuse=force)
            self.assertEqual(caught.exception.code, "ANBOX-C020")
        self.assertEqual(self.journal.pending, [])

    async def test_an_image_that_is_damaged_inside_has_the_kernels_reason(self) -> None:
        image = self.squashfs()
        with open(image.path, "r+b") as file:
            file.seek(8)
            file.write(b"\xff" * 24)
        mounter = ImageMounter(self.commands, find=lambda name: None)
        with self.assertRaises(DiagnosedError) as caught:
            await mounter.mount(image, self.target, self.journal)
        self.assertEqual(caught.exception.code, "ANBOX-C020")
        self.assertEqual(self.journal.pending, [])
        with self.assertRaises(DiagnosedError):
            await ImageMounter(self.commands).mount(image, self.target, self.journal)
        self.assertEqual(self.journal.pending, [])
        self.assertEqual(self.loops(image.path), "")
