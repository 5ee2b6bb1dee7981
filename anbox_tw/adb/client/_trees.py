"""Pushing and pulling of trees over one sync session."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from anbox_tw.adb import _sync
from anbox_tw.adb.client._errors import SyncFailure
from anbox_tw.adb.client.sync import SMALL_BATCH, Progress, RemoteStat, SyncSession, choose_codec
from anbox_tw.errors import AdbError

__all__ = ["in_thread", "pull", "push"]

MAX_DEPTH = 256
"""Directories in each other; a device that lists endlessly is left there."""


@attrs.frozen
class _Item:
    """One file to copy."""

    source: str
    target: str
    size: int
    mtime: int
    mode: int


class _Counter:
    """Adds up the progress of all files."""

    def __init__(self, items: Sequence[_Item], report: Callable[[Progress], None] | None) -> None:
        self._total = sum(item.size for item in items)
        self._done = 0
        self._report = report

    def of(self, path: str) -> Callable[[int], None] | None:
        """What counts for one file."""
        report = self._report
        if report is None:
            return None

        def count(size: int) -> None:
            self._done += size
            report(Progress(path, self._done, self._total))

        return count

    def whole(self, item: _Item) -> None:
        """One file is there, all of it."""
        count = self.of(item.source)
        if count is not None:
            count(item.size)


def in_thread(reactor: Any, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
    """Run blocking code in the reactor's pool."""
    return deferToThreadPool(reactor, reactor.getThreadPool(), function, *arguments)


def _walk(source: str, target: str) -> list[_Item]:
    """In a thread: the files below ``source``."""
    status = os.lstat(source)
    if not stat.S_ISDIR(status.st_mode):
        return [_Item(source, target, status.st_size, int(status.st_mtime), status.st_mode)]
    items = []
    for folder, folders, names in os.walk(source):
        inner = posixpath.normpath(posixpath.join(target, os.path.relpath(folder, source)))
        for name in names + [one for one in folders if os.path.islink(os.path.join(folder, one))]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                item = _Item(
                    path, posixpath.join(inner, name), status.st_size, int(status.st_mtime), status.st_mode
                )
                items.append(item)
    return items


async def push(
    reactor: Any,
    session: SyncSession,
    sources: Sequence[str],
    target: str,
    compression: str,
    dry_run: bool,
    resume: bool,
    progress: Callable[[Progress], None] | None,
) -> int:
    """See ``Device.push``."""
    codec = choose_codec(compression, session.features, "sendrecv_v2")
    there = await session.stat(target)
    if len(sources) > 1 and not there.is_dir:
        raise AdbError(f"target '{target}' is not a directory", "several sources need a directory")
    items: list[_Item] = []
    for source in sources:
        goal = target
        if there.is_dir or target.endswith("/"):
            name = os.path.basename(source.rstrip("/"))
            if name not in ("", ".", ".."):
                goal = posixpath.join(target, name)
        items += await in_thread(reactor, _walk, source, goal)
    counter = _Counter(items, progress)
    sent = 0
    small: list[_Item] = []

    async def send(item: _Item) -> None:
        count = counter.of(item.source)
        await session.send(item.source, item.target, codec=codec, dry_run=dry_run, progress=count)

    async def send_small() -> None:
        batch = {item.target: item for item in small}
        small.clear()
        large = await session.send_small([(item.source, item.target) for item in batch.values()])
        for _, path in large:
            await send(batch.pop(path))
        for item in batch.values():
            counter.whole(item)

    for item in items:
        if resume and stat.S_ISREG(item.mode) and _same(await session.stat(item.target), item):
            counter.whole(item)
            continue
        sent += 1
        if item.size > _sync.MAX_CHUNK or dry_run:
            await send(item)
            continue
        small.append(item)
        if len(small) >= SMALL_BATCH:
            await send_small()
    if small:
        await send_small()
    return sent


def _same(there: RemoteStat, item: _Item) -> bool:
    return stat.S_ISREG(there.mode) and (there.size, there.mtime) == (item.size, item.mtime)


async def pull(
    reactor: Any,
    session: SyncSession,
    sources: Sequence[str],
    target: str,
    compression: str,
    preserve: bool,
    resume: bool,
    progress: Callable[[Progress], None] | None,
) -> int:
    """See ``Device.pull``."""
    codec = choose_codec(compression, session.features, "sendrecv_v2")
    into = os.path.isdir(target)
    if len(sources) > 1 and not into:
        raise AdbError(f"target '{target}' is not a directory", "several sources need a directory")
    items: list[_Item] = []
    for source in sources:
        status = await session.stat(source)
        if not status.exists:
            reason = os.strerror(status.error) if status.error else "No such file or directory"
            raise SyncFailure(f"failed to stat remote object '{source}': {reason}")
        name = posixpath.basename(source.rstrip("/"))
        goal = os.path.join(target, name) if into and name not in ("", ".", "..") else target
        if status.is_dir:
            items += await _list_tree(session, source, goal)
        else:
            items.append(_Item(source, goal, status.size, status.mtime, status.mode))
    counter = _Counter(items, progress)
    received = 0
    small: list[_Item] = []

    def finish(item: _Item) -> None:
        if preserve:
            os.utime(item.target, (item.mtime, item.mtime))
            os.chmod(item.target, stat.S_IMODE(item.mode) & 0o777)

    async def receive_small() -> None:
        batch = small[:]
        small.clear()
        pairs = [(item.source, item.target) for item in batch]
        await session.receive_small(pairs, lambda index: finish(batch[index]))
        for item in batch:
            counter.whole(item)

    for item in items:
        if stat.S_ISDIR(item.mode):
            os.makedirs(item.target, exist_ok=True)
            continue
        if resume and preserve and _same_local(item):
            counter.whole(item)
            continue
        os.makedirs(os.path.dirname(item.target) or ".", exist_ok=True)
        received += 1
        # What /proc and /sys call a file of no size may give any amount.
        if 0 < item.size <= _sync.MAX_CHUNK:
            small.append(item)
            if len(small) >= SMALL_BATCH:
                await receive_small()
            continue
        await session.receive(item.source, item.target, codec=codec, progress=counter.of(item.source))
        finish(item)
    if small:
        await receive_small()
    return received


def _same_local(item: _Item) -> bool:
    try:
        status = os.lstat(item.target)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and (status.st_size, int(status.st_mtime)) == (item.size, item.mtime)


async def _list_tree(session: SyncSession, source: str, target: str) -> list[_Item]:
    items = [_Item(source, target, 0, 0, stat.S_IFDIR)]
    todo = [(source, target, 0)]
    while todo:
        folder, goal, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise SyncFailure(f"{folder}: more than {MAX_DEPTH} directories in each other")
        for entry in await session.listdir(folder):
            path, local = posixpath.join(folder, entry.name), os.path.join(goal, entry.name)
            if stat.S_ISLNK(entry.mode):
                # As adb does: what a symlink leads to is pulled if it is a file.
                entry = await session.stat(path)
                if not stat.S_ISREG(entry.mode):
                    continue
            if entry.is_dir:
                items.append(_Item(path, local, 0, entry.mtime, entry.mode))
                todo.append((path, local, depth + 1))
            elif stat.S_ISREG(entry.mode):
                items.append(_Item(path, local, entry.size, entry.mtime, entry.mode))
    return items
