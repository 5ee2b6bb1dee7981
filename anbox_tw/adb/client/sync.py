"""The sync protocol from the host's side: one stream, many files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from anbox_tw.adb import _sync
from anbox_tw.adb._wire import Buffer
from anbox_tw.adb.client._errors import StreamEnded, SyncFailure
from anbox_tw.adb.client.streams import ByteStream
from anbox_tw.adb.daemon import compression
from anbox_tw.errors import AdbError, PeerError

__all__ = ["SMALL_BATCH", "Progress", "RemoteStat", "SyncSession", "choose_codec"]

BULK = 15 * _sync.MAX_CHUNK
"""File bytes read or written in one go; with their headers just below the largest packet."""
SMALL_BATCH = 64
"""Small files that are read, asked for or written together."""
MAX_PENDING = 64
"""Files sent whose answer has not come; adb itself goes to 128."""


@attrs.frozen
class RemoteStat:
    """What the device says about a file.

    Attributes:
        name: of a directory entry, else empty.
        mode: ``st_mode``; 0 if there is no such file.
        size: in bytes.
        mtime: seconds since 1970.
        error: errno in Linux's numbers, 0 if there is none.
    """

    mode: int
    size: int
    mtime: int
    error: int = 0
    name: str = ""
    uid: int = 0
    gid: int = 0
    nlink: int = 0
    dev: int = 0
    ino: int = 0
    atime: int = 0
    ctime: int = 0

    @property
    def exists(self) -> bool:
        """Whether there is such a file."""
        return not self.error and self.mode != 0

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


@attrs.frozen
class Progress:
    """How far a transfer is.

    Attributes:
        path: the file being transferred.
        done: bytes of all files so far.
        total: bytes of all files.
    """

    path: str
    done: int
    total: int


def choose_codec(wanted: str, features: frozenset[str], version: str) -> str | None:
    """The codec to use.

    Args:
        wanted: ``any``, ``none``, or a codec's name.
        features: of the device.
        version: the feature that must be there at all.

    Raises:
        AdbError: the wanted codec is not there on both ends.
    """
    possible = [name for name in compression.available() if f"{version}_{name}" in features]
    if wanted == "none" or (wanted == "any" and not possible):
        return None
    if wanted == "any":
        return next(name for name in ("zstd", "lz4", "brotli") if name in possible)
    if wanted not in compression.FLAGS:
        raise AdbError(f"unknown compression {wanted!r}", "one of any, none, brotli, lz4, zstd")
    if wanted not in possible:
        raise AdbError(f"compression {wanted} is not available on both ends")
    return wanted


class SyncSession:
    """One ``sync:`` stream.

    Args:
        reactor: for its threads: files are read and written there.
        stream: open.
        features: of the device.
    """

    def __init__(self, reactor: Any, stream: ByteStream, features: frozenset[str]) -> None:
        self._reactor = reactor
        self.stream = stream
        self.features = features
        self._pending: list[str] = []

    def _thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)

    def _request(self, kind: bytes, path: str) -> None:
        data = os.fsencode(path)
        if len(data) > _sync.MAX_PATH:
            raise AdbError(f"the path is longer than {_sync.MAX_PATH} bytes: {path}")
        self.stream.write(_sync.header(kind, len(data)) + data)

    async def _header(self) -> tuple[bytes, int]:
        kind, value = _sync.HEADER.unpack(await self.stream.read_exactly(_sync.HEADER.size))
        return kind, value

    async def _fail(self, size: int) -> SyncFailure:
        text = await self.stream.read_exactly(min(size, 0xFFFF))
        return SyncFailure(text.decode("utf-8", "replace"))

    # ---------------------------------------------------------------- looking

    async def stat(self, path: str, *, follow: bool = True) -> RemoteStat:
        """Look at a file; one that is missing gives ``exists`` False.

        Without the feature ``stat_v2`` symlinks are never followed and errors not told apart.
        """
        await self._all_answered()
        if "stat_v2" not in self.features:
            self._request(_sync.LSTAT_V1, path)
            kind, mode, size, mtime = _sync.STAT_V1.unpack(await self.stream.read_exactly(16))
            self._expect(kind, _sync.LSTAT_V1)
            return RemoteStat(mode, size, mtime)
        wanted = _sync.STAT_V2 if follow else _sync.LSTAT_V2
        self._request(wanted, path)
        fields = _sync.STAT_V2_FIELDS.unpack(await self.stream.read_exactly(_sync.STAT_V2_FIELDS.size))
        self._expect(fields[0], wanted)
        return _from_v2(fields)

    async def listdir(self, path: str) -> list[RemoteStat]:
        """The entries of a directory without ``.`` and ``..``; none if it cannot be read."""
        await self._all_answered()
        v2 = "ls_v2" in self.features
        record = _sync.DENT_V2_FIELDS if v2 else _sync.DENT_V1_FIELDS
        wanted = _sync.DENT_V2 if v2 else _sync.DENT_V1
        self._request(_sync.LIST_V2 if v2 else _sync.LIST_V1, path)
        entries: list[RemoteStat] = []
        while True:
            fields = record.unpack(await self.stream.read_exactly(record.size))
            if fields[0] == _sync.DONE:
                return entries
            self._expect(fields[0], wanted)
            if fields[-1] > _sync.MAX_NAME:
                raise PeerError(f"the device lists a name of {fields[-1]} bytes")
            name = os.fsdecode(await self.stream.read_exactly(fields[-1]))
            if "/" in name:
                # It would lead a pull out of its target directory.
                raise PeerError(f"the device lists a name with a slash: {name!r}")
            if name not in (".", ".."):
                entry = _from_v2(fields) if v2 else RemoteStat(fields[1], fields[2], fields[3])
                entries.append(attrs.evolve(entry, name=name))

    def _expect(self, kind: bytes, wanted: bytes) -> None:
        if kind != wanted:
            raise PeerError(f"the device answers {kind!r} where {wanted!r} belongs")

    # ------------------------------------------------------------------ sending

    async def send(
        self,
        source: str,
        path: str,
        *,
        codec: str | None = None,
        dry_run: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Send one file or symlink; does not wait for the answer, ``finish`` does.

        Args:
            source: a local file.
            path: where it goes.
            codec: compression, for files above 64 KiB.
            dry_run: have the device throw it away.
            progress: called with the number of bytes, piece by piece.

        Raises:
            SyncFailure: an earlier file has failed.
            OSError: the local file cannot be read.
        """
        status = os.lstat(source)
        if stat.S_ISLNK(status.st_mode):
            data = os.fsencode(os.readlink(source)) + b"\0"
            self._send_whole(path, status, data)
        elif not stat.S_ISREG(status.st_mode):
            raise AdbError(f"{source} is neither a file nor a symlink")
        else:
            await self._send_file(source, path, status, codec, dry_run, progress)
        self._pending.append(path)
        while len(self._pending) >= MAX_PENDING or (self._pending and self.stream.available >= 8):
            await self._answer()
        await self.stream.drain()

    async def send_small(self, files: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Send many small files and symlinks; one turn of a thread reads them all.

        Args:
            files: (local path, path on the device), at most ``SMALL_BATCH``.

        Returns:
            Those that are not small any more, for ``send``.

        Raises:
            SyncFailure: an earlier file has failed.
            OSError: a local file cannot be read.
        """
        found: list[tuple[os.stat_result, bytes | None]] = await self._thread(_read_small, files)
        large = []
        for (source, path), (status, data) in zip(files, found, strict=True):
            if data is None:
                large.append((source, path))
                continue
            self._send_whole(path, status, data)
            self._pending.append(path)
            while len(self._pending) >= MAX_PENDING or (self._pending and self.stream.available >= 8):
                await self._answer()
        await self.stream.drain()
        return large

    def _send_whole(self, path: str, status: os.stat_result, data: bytes) -> None:
        spec = os.fsencode(f"{path},{status.st_mode}")
        self.stream.write(
            _sync.header(_sync.SEND_V1, len(spec))
            + spec
            + (_sync.header(_sync.DATA, len(data)) + data if data else b"")
            + _sync.header(_sync.DONE, int(status.st_mtime))
        )

    async def _send_file(
        self,
        source: str,
        path: str,
        status: os.stat_result,
        codec: str | None,
        dry_run: bool,
        progress: Callable[[int], None] | None,
    ) -> None:
        file: int = await self._thread(os.open, source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            first: bytes = await self._thread(os.read, file, _sync.MAX_CHUNK)
            if len(first) == status.st_size and not dry_run:
                self._send_whole(path, status, first)
                if progress is not None:
                    progress(len(first))
                return
            if "sendrecv_v2" in self.features:
                flags = compression.FLAGS[codec] if codec else 0
                flags |= _sync.FLAG_DRY_RUN if dry_run else 0
                self._request(_sync.SEND_V2, path)
                second = _sync.SEND_V2 + status.st_mode.to_bytes(4, "little") + flags.to_bytes(4, "little")
                self.stream.write(second)
            else:
                if dry_run:
                    raise AdbError("the device cannot do a dry run")
                codec = None
                spec = os.fsencode(f"{path},{status.st_mode}")
                self.stream.write(_sync.header(_sync.SEND_V1, len(spec)) + spec)
            worker = compression.compressor(codec) if codec else None
            await self._send_chunks(file, first, worker, progress)
            self.stream.write(_sync.header(_sync.DONE, int(status.st_mtime)))
        finally:
            os.close(file)

    async def _send_chunks(
        self,
        file: int,
        data: bytes,
        worker: compression.Compressor | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        framed: bytes = _frame(worker.compress(data) if worker is not None else data)
        size = len(data)
        while size:
            self.stream.write(framed)
            if progress is not None:
                progress(size)
            if self.stream.ended or self.stream.available:
                # The device has something to say before the end: that can only be a failure.
                await self._answer()
            await self.stream.drain()
            size, framed = await self._thread(_read_framed, file, worker)
        if worker is not None:
            rest: bytes = await self._thread(worker.flush)
            self.stream.write(_frame(rest))

    async def _all_answered(self) -> None:
        """Answers come in the order of the requests: those to files sent are due first."""
        while self._pending:
            await self._answer()

    async def _answer(self) -> None:
        path = self._pending.pop(0) if self._pending else ""
        kind, value = await self._header()
        if kind == _sync.OKAY:
            return
        if kind == _sync.FAIL:
            failure = await self._fail(value)
            self.stream.abort()
            raise SyncFailure(f"{path}: {failure.cause}" if path else failure.cause)
        raise PeerError(f"the device answers {kind!r} to a file")

    # ---------------------------------------------------------------- receiving

    async def receive(
        self,
        path: str,
        target: str,
        *,
        codec: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Receive one file into ``target``, which is replaced when all has come and untouched otherwise.

        A device, FIFO or socket is written to instead: as root, ``pull X /dev/null`` must not replace it.

        Raises:
            SyncFailure: the device cannot read it.
            OSError: the local file cannot be written.
        """
        if await self._thread(_is_special, target):
            special: int = await self._thread(os.open, target, os.O_WRONLY | os.O_CLOEXEC)
            try:
                await self._receive(path, special, codec, progress)
            finally:
                os.close(special)
            return
        partial = f"{target}.part-{os.getpid()}"
        file: int = await self._thread(
            os.open, partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
        )
        try:
            try:
                await self._receive(path, file, codec, progress)
            finally:
                os.close(file)
            await self._thread(os.replace, partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise

    async def _receive(
        self, path: str, file: int, codec: str | None, progress: Callable[[int], None] | None
    ) -> None:
        pieces: list[Buffer | memoryview] = []
        size = 0
        worker = compression.decompressor(codec) if codec is not None else None
        async for piece in self._chunks(path, codec):
            pieces.append(piece)
            size += len(piece)
            if progress is not None:
                progress(len(piece))
            if size >= BULK:
                await self._thread(_write_pieces, file, pieces, worker)
                pieces, size = [], 0
        if pieces:
            await self._thread(_write_pieces, file, pieces, worker)
        if worker is not None and not worker.finished():
            raise SyncFailure(f"{path}: the compressed data ends too early")

    async def receive_small(self, files: Sequence[tuple[str, str]], finish: Callable[[int], None]) -> None:
        """Receive many small files; all are asked for at once, and one turn of a thread writes them.

        Args:
            files: (path on the device, local path), at most ``SMALL_BATCH``.
            finish: called in the thread with the index of each file that is in place.

        Raises:
            SyncFailure: the device cannot read one, or one has become large.
            OSError: a local file cannot be written.
        """
        await self._all_answered()
        for path, _ in files:
            self._request(_sync.RECV_V1, path)
        contents = []
        room = SMALL_BATCH * _sync.MAX_CHUNK
        for path, _ in files:
            content = bytearray()
            try:
                async for piece in self._pieces():
                    content += piece
                    room -= len(piece)
                    if room < 0:
                        self.stream.abort()
                        raise SyncFailure("it has grown while it was being copied")
            except SyncFailure as error:
                raise SyncFailure(f"{path}: {error.cause}") from error
            contents.append(bytes(content))
        await self._thread(_write_small, [target for _, target in files], contents, finish)

    async def _chunks(self, path: str, codec: str | None) -> Any:
        """The pieces of a file, as they come."""
        await self._all_answered()
        if codec is not None or "sendrecv_v2" in self.features:
            self._request(_sync.RECV_V2, path)
            self.stream.write(_sync.header(_sync.RECV_V2, compression.FLAGS[codec] if codec else 0))
        else:
            self._request(_sync.RECV_V1, path)
        async for piece in self._pieces():
            yield piece

    async def _pieces(self) -> Any:
        while True:
            kind, value = await self._header()
            if kind == _sync.DONE:
                return
            if kind == _sync.FAIL:
                raise await self._fail(value)
            if kind != _sync.DATA or value > _sync.MAX_CHUNK:
                self.stream.abort()
                raise PeerError(f"the device sends {kind!r} with {value} in a file")
            while value:
                piece = await self.stream.read(value)
                if not piece:
                    raise StreamEnded("the device closed the stream in the middle of a file")
                value -= len(piece)
                yield piece

    async def read_file(self, path: str, limit: int = 64 << 20) -> bytes:
        """The content of a small file.

        Raises:
            SyncFailure: the device cannot read it, or it has more than ``limit`` bytes.
        """
        content = bytearray()
        async for piece in self._chunks(path, None):
            content += piece
            if len(content) > limit:
                self.stream.abort()
                raise SyncFailure(f"{path} has more than {limit} bytes")
        return bytes(content)

    async def finish(self) -> None:
        """Wait for every answer, then end the stream.

        Raises:
            SyncFailure: a file has failed.
        """
        await self._all_answered()
        self.stream.write(_sync.header(_sync.QUIT, 0))
        self.stream.close()

    def abort(self) -> None:
        """End the stream now."""
        self.stream.abort()


def _from_v2(fields: tuple[Any, ...]) -> RemoteStat:
    _, error, dev, ino, mode, nlink, uid, gid, size, atime, mtime, ctime = fields[:12]
    return RemoteStat(mode, size, mtime, error, "", uid, gid, nlink, dev, ino, atime, ctime)


def _read_small(files: Sequence[tuple[str, str]]) -> list[tuple[os.stat_result, bytes | None]]:
    """In a thread: status and content of small files and symlinks; None for what is neither."""
    found: list[tuple[os.stat_result, bytes | None]] = []
    for source, _ in files:
        status = os.lstat(source)
        data: bytes | None = None
        if stat.S_ISLNK(status.st_mode):
            data = os.fsencode(os.readlink(source)) + b"\0"
        elif stat.S_ISREG(status.st_mode) and status.st_size <= _sync.MAX_CHUNK:
            with open(source, "rb", buffering=0) as file:
                data = file.read(_sync.MAX_CHUNK + 1)
            if len(data) > _sync.MAX_CHUNK:
                data = None
        found.append((status, data))
    return found


def _is_special(path: str) -> bool:
    """Whether there is something at ``path`` that is neither a file nor a directory nor a dangling link."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _write_small(targets: Sequence[str], contents: Sequence[bytes], finish: Callable[[int], None]) -> None:
    """In a thread: write small files, each of which appears whole or not at all."""
    for index, (target, content) in enumerate(zip(targets, contents, strict=True)):
        if _is_special(target):
            with open(os.open(target, os.O_WRONLY | os.O_CLOEXEC), "wb", buffering=0) as device:
                device.write(content)
            finish(index)
            continue
        partial = f"{target}.part-{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(partial, flags, 0o666), "wb", buffering=0) as file:
                file.write(content)
            os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
        finish(index)


def _frame(data: bytes | memoryview) -> bytes:
    """``data`` as DATA chunks."""
    parts: list[bytes | memoryview] = []
    view = memoryview(data)
    for start in range(0, len(view), _sync.MAX_CHUNK):
        chunk = view[start : start + _sync.MAX_CHUNK]
        parts += (_sync.header(_sync.DATA, len(chunk)), chunk)
    return b"".join(parts)


def _read_framed(file: int, worker: compression.Compressor | None) -> tuple[int, bytes | memoryview]:
    """In a thread: the next bytes of a file, as DATA chunks. (file bytes, what to send)."""
    if worker is not None:
        data = os.read(file, BULK)
        return len(data), _frame(worker.compress(data)) if data else b""
    slot = _sync.HEADER.size + _sync.MAX_CHUNK
    buffer = bytearray(BULK // _sync.MAX_CHUNK * slot)
    view = memoryview(buffer)
    size = os.readv(file, [view[start + 8 : start + slot] for start in range(0, len(buffer), slot)])
    full, rest = divmod(size, _sync.MAX_CHUNK)
    for index in range(full):
        buffer[index * slot : index * slot + 8] = _sync.header(_sync.DATA, _sync.MAX_CHUNK)
    end = full * slot
    if rest:
        buffer[end : end + 8] = _sync.header(_sync.DATA, rest)
        end += 8 + rest
    return size, view[:end]


def _write_pieces(
    file: int, pieces: list[Buffer | memoryview], worker: compression.Decompressor | None
) -> None:
    """In a thread: write what has come."""
    if worker is None:
        for start in range(0, len(pieces), 512):
            batch = pieces[start : start + 512]
            written = os.writev(file, batch)
            if written < sum(map(len, batch)):
                view = memoryview(b"".join(batch))[written:]
                while view:
                    view = view[os.write(file, view) :]
        return
    for piece in pieces:
        for data in _decompress(worker, piece):
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]


def _decompress(worker: compression.Decompressor, piece: Buffer | memoryview) -> Iterator[bytes]:
    try:
        yield from worker.decompress(memoryview(piece))
    except Exception as error:
        # Each codec has errors of its own kind.
        raise SyncFailure("the device sends data that does not decompress") from error
