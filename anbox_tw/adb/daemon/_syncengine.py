"""The sync service as straight blocking code, run in a worker thread (AOSP ``daemon/file_sync_service.cpp``).

A ``Pipe`` joins it to the stream: requests come out of it, answers go into it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from anbox_tw.adb import _sync
from anbox_tw.adb._wire import Buffer
from anbox_tw.adb.daemon import compression
from anbox_tw.adb.daemon.files import FileTree
from anbox_tw.errors import AdbError

__all__ = ["BULK_CHUNKS", "Pipe", "PipeClosed", "SyncEngine"]

BULK_CHUNKS = 15
"""DATA chunks of 64 KiB in one outgoing buffer: with their headers and a DONE below 1 MiB, one packet."""
_SLOT = _sync.HEADER.size + _sync.MAX_CHUNK
BULK_SIZE = BULK_CHUNKS * _SLOT + _sync.HEADER.size
_MODE = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F]{1,16})|(0[0-7]{0,22})|([1-9][0-9]{0,19}))", re.ASCII)
_FLUSH_AT = 64 * 1024
_DATA_HEADER = _sync.header(_sync.DATA, _sync.MAX_CHUNK)


class PipeClosed(Exception):
    """The stream has gone while the engine wanted to read or write."""


class Pipe(Protocol):
    """The engine's blocking face of the stream."""

    def read(self) -> Buffer:
        """The next piece that the host sent, never empty. Raises ``PipeClosed``."""

    def write(self, data: Buffer | memoryview) -> None:
        """Send ``data``, which stays untouched until it is sent. Raises ``PipeClosed``."""

    def take_buffer(self) -> bytearray:
        """A buffer of ``BULK_SIZE`` bytes that nobody else uses. Raises ``PipeClosed``."""


class Refused(AdbError):
    """A request fails with this text; the stream goes on or ends as ``ends`` says."""

    def __init__(self, text: str, *, ends: bool = True) -> None:
        super().__init__(text)
        self.ends = ends


def _parse_mode(text: str) -> int | None:
    """What ``strtoul`` with base 0 makes of ``text``, as far as a mode has bits; None if that is not all of it."""
    match = _MODE.fullmatch(text)
    if match is None:
        return None
    sign, hexadecimal, octal, decimal = match.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    return (-value if sign == "-" else value) & 0xFFFFFFFF


def _reason(what: str, error: OSError) -> str:
    return f"{what}: {os.strerror(error.errno) if error.errno else error}"


class SyncEngine:
    """Serves one ``sync:`` stream.

    Args:
        pipe: the stream.
        tree: the files.
    """

    def __init__(self, pipe: Pipe, tree: FileTree) -> None:
        self._pipe = pipe
        self._tree = tree
        self._in = memoryview(b"")
        self._out: list[bytes] = []
        self._out_size = 0
        self._requests: dict[bytes, Callable[[str], None]] = {
            _sync.LSTAT_V1: self._lstat_v1,
            _sync.STAT_V2: lambda path: self._stat_v2(_sync.STAT_V2, path, follow=True),
            _sync.LSTAT_V2: lambda path: self._stat_v2(_sync.LSTAT_V2, path, follow=False),
            _sync.LIST_V1: lambda path: self._list(path, v2=False),
            _sync.LIST_V2: lambda path: self._list(path, v2=True),
            _sync.SEND_V1: self._send_v1,
            _sync.SEND_V2: self._send_v2,
            _sync.RECV_V1: lambda path: self._recv(path, None),
            _sync.RECV_V2: self._recv_v2,
        }

    def run(self) -> None:
        """Serve until QUIT, a failure that ends the stream, or its end. Never raises."""
        try:
            while self._one():
                pass
            self._flush()
        except PipeClosed:
            pass

    # -------------------------------------------------------------------- input

    def _fill(self) -> None:
        if not self._in:
            # Nothing is owed to a host that waits for the answer before it goes on.
            self._flush()
            self._in = memoryview(self._pipe.read())

    def _read(self, count: int) -> bytes:
        self._fill()
        if len(self._in) >= count:
            data = bytes(self._in[:count])
            self._in = self._in[count:]
            return data
        parts = []
        while count:
            self._fill()
            part = self._in[:count]
            parts.append(bytes(part))
            self._in = self._in[len(part) :]
            count -= len(part)
        return b"".join(parts)

    # ------------------------------------------------------------------- output

    def _say(self, data: bytes) -> None:
        self._out.append(data)
        self._out_size += len(data)
        if self._out_size >= _FLUSH_AT:
            self._flush()

    def _flush(self) -> None:
        if self._out:
            out, self._out = self._out, []
            self._out_size = 0
            self._pipe.write(b"".join(out))

    def _fail(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        self._say(_sync.header(_sync.FAIL, len(data)) + data)

    # ----------------------------------------------------------------- requests

    def _one(self) -> bool:
        """Serve one request; whether the stream goes on."""
        kind, size = _sync.HEADER.unpack(self._read(_sync.HEADER.size))
        if kind == _sync.QUIT:
            return False
        try:
            if size > _sync.MAX_PATH:
                raise Refused("path too long")
            path = self._read(size).decode("utf-8", "surrogateescape")
            request = self._requests.get(kind)
            if request is None:
                raise Refused(f"unknown command {int.from_bytes(kind, 'little'):08x}")
            if "\0" in path:
                raise Refused("path has a NUL in it")
            request(path)
        except Refused as error:
            self._fail(error.cause)
            return not error.ends
        return True

    def _lstat(self, path: str, *, follow: bool) -> os.stat_result:
        with self._tree.place(path, follow=follow) as (folder, name):
            return os.stat(name, dir_fd=folder, follow_symlinks=follow and folder is None)

    def _lstat_v1(self, path: str) -> None:
        try:
            status = self._lstat(path, follow=False)
        except OSError:
            self._say(_sync.STAT_V1.pack(_sync.LSTAT_V1, 0, 0, 0))
            return
        self._say(
            _sync.STAT_V1.pack(
                _sync.LSTAT_V1, status.st_mode, status.st_size & 0xFFFFFFFF, int(status.st_mtime) & 0xFFFFFFFF
            )
        )

    def _stat_v2(self, kind: bytes, path: str, *, follow: bool) -> None:
        try:
            status = self._lstat(path, follow=follow)
        except OSError as error:
            self._say(_sync.pack_stat_v2(kind, None, error.errno or errno.EIO))
            return
        self._say(_sync.pack_stat_v2(kind, status))

    def _list(self, path: str, *, v2: bool) -> None:
        record = _sync.DENT_V2_FIELDS if v2 else _sync.DENT_V1_FIELDS
        with contextlib.suppress(OSError), self._tree.place(path, follow=True) as (folder, name):
            handle = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | _nofollow(folder), dir_fd=folder
            )
            try:
                names = [".", "..", *os.listdir(handle)]
                for entry in names:
                    self._list_entry(handle, entry, v2=v2)
            finally:
                os.close(handle)
        # The record that ends a list has the size of an entry.
        self._say(_sync.DONE + bytes(record.size - 4))

    def _list_entry(self, handle: int, entry: str, *, v2: bool) -> None:
        name = os.fsencode(entry)
        if len(name) > _sync.MAX_NAME:
            return
        try:
            status = os.stat(entry, dir_fd=handle, follow_symlinks=False)
        except OSError as error:
            if v2:
                failed = _sync.pack_stat_v2(_sync.DENT_V2, None, error.errno or errno.EIO)
                self._say(failed + len(name).to_bytes(4, "little") + name)
            return
        if v2:
            self._say(_sync.pack_stat_v2(_sync.DENT_V2, status) + len(name).to_bytes(4, "little") + name)
        else:
            size, mtime = status.st_size & 0xFFFFFFFF, int(status.st_mtime) & 0xFFFFFFFF
            self._say(_sync.DENT_V1_FIELDS.pack(_sync.DENT_V1, status.st_mode, size, mtime, len(name)) + name)

    # --------------------------------------------------------------------- send

    def _send_v1(self, spec: str) -> None:
        path, comma, text = spec.rpartition(",")
        if not comma:
            self._discard()
            raise Refused("missing , in ID_SEND_V1")
        mode = _parse_mode(text)
        if mode is None:
            self._discard()
            raise Refused("bad mode")
        self._send(path, mode, None, dry_run=False)

    def _send_v2(self, path: str) -> None:
        kind, mode, flags = _read_triple(self._read(12))
        if kind != _sync.SEND_V2:
            raise Refused("invalid ID_SEND_V2 message")
        dry_run = bool(flags & _sync.FLAG_DRY_RUN)
        try:
            codec = _codec(flags & ~_sync.FLAG_DRY_RUN)
        except Refused:
            self._discard()
            raise
        self._send(path, mode, codec, dry_run=dry_run)

    def _send(self, path: str, mode: int, codec: str | None, *, dry_run: bool) -> None:
        incoming = _Incoming(self, codec)
        try:
            if stat.S_ISLNK(mode):
                self._send_link(path, incoming, dry_run=dry_run)
            else:
                self._send_file(path, mode, incoming, dry_run=dry_run)
        except Refused:
            # An old host does not read before it has sent everything.
            incoming.discard()
            raise
        self._say(_sync.header(_sync.OKAY, 0))

    def _send_link(self, path: str, incoming: _Incoming, *, dry_run: bool) -> None:
        target = bytearray()
        for views in incoming.pieces():
            for view in views:
                target += view
                if len(target) > 4096:
                    raise Refused("symlink failed: File name too long")
        if dry_run:
            return
        text = os.fsdecode(bytes(target).split(b"\0", 1)[0])

        def create() -> None:
            with self._tree.place(path) as (folder, name):
                with contextlib.suppress(FileNotFoundError):
                    before = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if stat.S_ISREG(before.st_mode) or stat.S_ISLNK(before.st_mode):
                        os.unlink(name, dir_fd=folder)
                os.symlink(text, name, dir_fd=folder)
                with contextlib.suppress(OSError):
                    os.utime(name, (incoming.mtime, incoming.mtime), dir_fd=folder, follow_symlinks=False)

        self._with_parents(path, create, "symlink failed")

    def _with_parents(self, path: str, create: Callable[[], None], failure: str) -> None:
        """Run ``create``, and once more after making the missing directories above ``path``."""
        try:
            try:
                create()
            except FileNotFoundError:
                try:
                    self._tree.make_parents(path)
                except OSError as error:
                    raise Refused(_reason("secure_mkdirs() failed", error)) from error
                create()
        except OSError as error:
            raise Refused(_reason(failure, error)) from error

    def _send_file(self, path: str, mode: int, incoming: _Incoming, *, dry_run: bool) -> None:
        if dry_run:
            for _ in incoming.pieces():
                pass
            return
        mode &= 0o777
        mode |= (mode >> 3) & 0o070
        mode |= (mode >> 3) & 0o007

        def create() -> None:
            with self._tree.place(path) as (folder, name):
                self._write_file(folder, name, mode, incoming)

        self._with_parents(path, create, "couldn't create file")

    def _write_file(self, folder: int | None, name: str, mode: int, incoming: _Incoming) -> None:
        """Create and fill one file. Raises FileNotFoundError when its directory is missing."""
        fd, fresh = self._create(folder, name, mode)
        done = False
        try:
            try:
                if fresh:
                    os.fchmod(fd, mode)
            except OSError as error:
                raise Refused(_reason("fchmod() failed", error)) from error
            for views in incoming.pieces():
                try:
                    _write_all(fd, views)
                except OSError as error:
                    raise Refused(_reason("write failed", error)) from error
            with contextlib.suppress(OSError):
                os.utime(fd, (incoming.mtime, incoming.mtime))
            done = True
        finally:
            if not done and fresh:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)
            try:
                os.close(fd)
            except OSError as error:
                if done:
                    raise Refused(_reason("write failed", error)) from error

    def _create(self, folder: int | None, name: str, mode: int) -> tuple[int, bool]:
        """An open file and whether it is a new one."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(name, flags, mode, dir_fd=folder), True
        except FileExistsError:
            pass
        before = os.stat(name, dir_fd=folder, follow_symlinks=False)
        # A device or pipe is written to; only files and symlinks are replaced.
        if stat.S_ISREG(before.st_mode) or stat.S_ISLNK(before.st_mode):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
            with contextlib.suppress(FileExistsError):
                return os.open(name, flags, mode, dir_fd=folder), True
        again = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(name, again, dir_fd=folder), False

    def _discard(self) -> None:
        _Incoming(self, None).discard()

    # --------------------------------------------------------------------- recv

    def _recv_v2(self, path: str) -> None:
        kind, flags = _sync.HEADER.unpack(self._read(8))
        if kind != _sync.RECV_V2:
            raise Refused("invalid ID_RECV_V2 message")
        self._recv(path, _codec(flags))

    def _recv(self, path: str, codec: str | None) -> None:
        try:
            with self._tree.place(path, follow=True) as (folder, name):
                # O_NONBLOCK: nobody may ever open the other end of a named pipe.
                fd = os.open(
                    name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | _nofollow(folder), dir_fd=folder
                )
        except OSError as error:
            raise Refused(_reason("open failed", error)) from error
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                raise Refused("read failed: Is a directory")
            # What /proc and /sys call a file of no size has to be read to its end like a pipe.
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            if codec is not None:
                self._recv_compressed(fd, codec)
            elif 0 < size <= _sync.MAX_CHUNK:
                self._recv_small(fd)
            else:
                self._recv_plain(fd, size)
        except OSError as error:
            raise Refused(_reason("read failed", error)) from error
        finally:
            os.close(fd)

    def _recv_small(self, fd: int) -> None:
        """One chunk as a rule; it leaves together with DONE and the answers around it.

        A DONE in a packet of its own costs 40 ms: the host's server writes both to its client, and
        the second write waits for the acknowledgement of the first.
        """
        while data := os.read(fd, _sync.MAX_CHUNK):
            self._say(_sync.header(_sync.DATA, len(data)) + data)
        self._say(_sync.header(_sync.DONE, 0))

    def _recv_plain(self, fd: int, size: int) -> None:
        """Read straight into buffers that have the chunk headers in place."""
        self._flush()
        position = 0
        while True:
            buffer = self._pipe.take_buffer()
            view = memoryview(buffer)
            slots = [view[start + 8 : start + _SLOT] for start in range(0, BULK_CHUNKS * _SLOT, _SLOT)]
            count = os.readv(fd, slots)
            if not count:
                self._say(_sync.header(_sync.DONE, 0))
                return
            position += count
            full, rest = divmod(count, _sync.MAX_CHUNK)
            for index in range(full):
                buffer[index * _SLOT : index * _SLOT + 8] = _DATA_HEADER
            end = full * _SLOT
            if rest:
                buffer[end : end + 8] = _sync.header(_sync.DATA, rest)
                end += 8 + rest
            last = 0 < size <= position
            if last:
                buffer[end : end + 8] = _sync.header(_sync.DONE, 0)
                end += 8
            self._pipe.write(view[:end])
            if last:
                return

    def _recv_compressed(self, fd: int, codec: str) -> None:
        worker = compression.compressor(codec)
        while data := os.read(fd, 4 * _sync.MAX_CHUNK):
            self._say_chunks(worker.compress(data))
        self._say_chunks(worker.flush())
        self._say(_sync.header(_sync.DONE, 0))

    def _say_chunks(self, data: bytes) -> None:
        for start in range(0, len(data), _sync.MAX_CHUNK):
            chunk = data[start : start + _sync.MAX_CHUNK]
            self._say(_sync.header(_sync.DATA, len(chunk)) + chunk)


class _Incoming:
    """The DATA chunks and the DONE of one SEND.

    Attributes:
        mtime: the time in DONE, in seconds, once all pieces have been read.
    """

    def __init__(self, engine: SyncEngine, codec: str | None) -> None:
        self._engine = engine
        self._codec = compression.decompressor(codec) if codec is not None else None
        self._left = 0
        self._ended = False
        self.mtime = 0

    def pieces(self) -> Iterator[list[memoryview] | list[bytes]]:
        """Lists of views to be written in order, until DONE.

        Raises:
            Refused: the chunks are not well formed, or do not decompress.
        """
        if self._codec is None:
            yield from self._raw()
            return
        try:
            for views in self._raw():
                for view in views:
                    for data in self._codec.decompress(view):
                        if data:
                            yield [data]
        except (Refused, PipeClosed, OSError, GeneratorExit):
            raise
        except Exception as error:
            # Each codec has errors of its own kind.
            raise Refused("decompress failed") from error
        if not self._codec.finished():
            raise Refused("decompress failed")

    def _raw(self) -> Iterator[list[memoryview]]:
        """As the chunks come: all that one received buffer holds at a time."""
        engine = self._engine
        size = _sync.HEADER.size
        while True:
            views: list[memoryview] = []
            source = engine._in
            while len(source) and not self._ended:
                if self._left:
                    view = source[: self._left]
                    views.append(view)
                    self._left -= len(view)
                    source = source[len(view) :]
                elif len(source) >= size:
                    kind, value = _sync.HEADER.unpack_from(source)
                    source = source[size:]
                    engine._in = source
                    self._header(kind, value)
                else:
                    break
            engine._in = source
            if views:
                yield views
            if self._ended:
                return
            if self._left or not len(source):
                engine._fill()
            else:
                self._header(*_sync.HEADER.unpack(engine._read(size)))
                if self._ended:
                    return

    def _header(self, kind: bytes, value: int) -> None:
        if kind == _sync.DATA:
            if value > _sync.MAX_CHUNK:
                self._ended = True
                raise Refused("oversize data message")
            self._left = value
        elif kind == _sync.DONE:
            self.mtime = value
            self._ended = True
        else:
            self._ended = True
            raise Refused("invalid data message")

    def discard(self) -> None:
        """Read and forget what is left of the file."""
        with contextlib.suppress(Refused):
            for _ in self._raw():
                pass


def _nofollow(folder: int | None) -> int:
    """A rooted tree has followed every symlink already: one that is there now has been put there since."""
    return 0 if folder is None else os.O_NOFOLLOW


def _read_triple(data: bytes) -> tuple[bytes, int, int]:
    return data[:4], int.from_bytes(data[4:8], "little"), int.from_bytes(data[8:12], "little")


def _codec(flags: int) -> str | None:
    """The codec that the flags name."""
    names = [name for name, bit in compression.FLAGS.items() if flags & bit]
    unknown = flags & ~sum(compression.FLAGS.values())
    if unknown:
        raise Refused(f"unknown flags: {unknown}")
    if len(names) > 1:
        raise Refused(f"multiple compression flags received: {flags}")
    if names and names[0] not in compression.available():
        raise Refused(f"compression {names[0]} is not available here")
    return names[0] if names else None


def _write_all(fd: int, views: Sequence[memoryview | bytes]) -> None:
    total = sum(map(len, views))
    done = os.writev(fd, views)
    while done < total:
        for index, view in enumerate(views):
            if done < len(view):
                views = [memoryview(view)[done:], *views[index + 1 :]]
                break
            done -= len(view)
        total = sum(map(len, views))
        done = os.writev(fd, views)
