"""The undo journal: what was changed on the host is written down before it is changed.

Rules:

* `Journal.record` returns only when the entry is on the disk; the change comes after it.
* Entries are undone in reverse order: at a stop, and at the next start when the manager was
  killed. An entry may therefore stand for a change that never came to be, or that is undone
  already: undoing is idempotent, "it is not there" is success.
* How a kind of change is undone is registered by name (`UndoKinds`), so a journal is data: a later
  process undoes what an earlier one wrote. A kind it does not know stays in the file and is told.
* A journal belongs to one instance and is locked (``flock``) by the manager that has it open. The
  kernel drops the lock when that process dies, in whatever way, so two managers never undo each
  other's work, and a dead manager's work is never kept locked.
* A line that is torn or corrupt is skipped and told; the others count.

The file has one JSON object with its CRC-32 a line. It is deleted when it is closed with nothing to
undo.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
import zlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.container.commands import Commands
from anbox_tw.container.diagnosis import DiagnosedError, Diagnosis
from anbox_tw.errors import AlreadyRunning
from anbox_tw.network.credentials import process_lives

__all__ = [
    "Entry",
    "Journal",
    "UndoContext",
    "UndoFailed",
    "UndoFailure",
    "UndoKind",
    "UndoKinds",
]

VERSION = 1
MAX_JOURNAL_BYTES = 4 * 1024 * 1024  # some 20 000 entries; a start makes about twenty
MAX_LINE_BYTES = 16 * 1024  # a mount entry with two paths of PATH_MAX
ORPHAN_WAIT_S = 1.0  # between fork and exec a child closes what it has inherited: milliseconds
ORPHAN_POLL_S = 0.005
UNDO_TIMEOUT_S = 20.0  # for one entry; unmounting retries for a few seconds


@attrs.frozen
class UndoContext:
    """What undoing may use.

    Attributes:
        reactor: gives the time.
        commands: runs system tools.
        proc: where procfs is.
        sys: where sysfs is.
    """

    reactor: Any
    commands: Commands
    proc: str = "/proc"
    sys: str = "/sys"


UndoFunction = Callable[[Mapping[str, Any], UndoContext], Coroutine[Any, Any, None]]
Describe = Callable[[Mapping[str, Any]], str]


@attrs.frozen
class UndoKind:
    """One kind of change.

    Attributes:
        name: what the journal calls it.
        undo: coroutine function of the entry's arguments and the context; returns when the change is
            not there (any more), raises when it still is.
        describe: what the change is, for people: ``the mount at /x``.
        by_hand: the command that undoes it, for people, or an empty string.
    """

    name: str
    undo: UndoFunction
    describe: Describe
    by_hand: Describe = lambda args: ""


class UndoKinds:
    """Kinds of changes by name."""

    def __init__(self, kinds: Mapping[str, UndoKind] | None = None) -> None:
        self._kinds = dict(kinds or {})

    def register(self, kind: UndoKind) -> None:
        """Add a kind.

        Raises:
            ValueError: the name is taken.
        """
        if kind.name in self._kinds:
            raise ValueError(f"the undo kind {kind.name!r} is registered already")
        self._kinds[kind.name] = kind

    def get(self, name: str) -> UndoKind | None:
        """The kind of that name, or ``None``."""
        return self._kinds.get(name)

    def __iter__(self) -> Iterator[str]:
        """The names, sorted."""
        return iter(sorted(self._kinds))

    def copy(self) -> UndoKinds:
        """A registry of its own with the same kinds."""
        return UndoKinds(self._kinds)


@attrs.frozen
class Entry:
    """A change that is to be undone.

    Attributes:
        number: counts up within the file.
        kind: name of its `UndoKind`.
        args: what undoing it needs, JSON-able.
        timestamp: seconds since the epoch when it was written.
    """

    number: int
    kind: str
    args: Mapping[str, Any] = attrs.field(hash=False)
    timestamp: float = 0.0


@attrs.frozen
class UndoFailure:
    """A change that is still there.

    Attributes:
        entry: the change.
        what: its description.
        why: what undoing it failed with.
        by_hand: how a person can undo it, or an empty string.
    """

    entry: Entry
    what: str
    why: str
    by_hand: str = ""


class UndoFailed(DiagnosedError):
    """Some changes could not be undone; all others are.

    Attributes:
        failures: what is still there.
    """

    def __init__(self, failures: list[UndoFailure]) -> None:
        self.failures = failures
        cure = "; ".join(f"run `{failure.by_hand}`" for failure in failures if failure.by_hand)
        super().__init__(
            Diagnosis(
                "ANBOX-C017",
                f"{len(failures)} change(s) to the host could not be undone",
                "; ".join(f"{failure.what}: {failure.why}" for failure in failures),
                f"{cure or 'remove by hand what is named'}, then start again",
            )
        )


class Journal:
    """The undo journal of one instance.

    Open it with `open`, which takes the lock; a journal that is not open refuses to record.
    """

    _log = Logger()

    def __init__(
        self, path: str, context: UndoContext, kinds: UndoKinds, *, now: Callable[[], float] = time.time
    ) -> None:
        """Name the file; `open` is what touches it.

        Args:
            path: the file; `anbox_tw.container.spec.ContainerSpec.journal_path`.
            context: what undoing may use.
            kinds: `anbox_tw.container.undo.default_kinds` and what a backend adds.
            now: seconds since the epoch.
        """
        self.path = path
        self.context = context
        self.kinds = kinds
        self.damaged_lines = 0
        self.last_phase = ""
        self.on_record: Callable[[str], None] = lambda text: None
        self._now = now
        self._descriptor = -1
        self._pending: dict[int, Entry] = {}
        self._next = 1
        self._waiters: list[Deferred[None]] = []
        self._undoing = False

    # -- the file --

    def open(self) -> None:
        """Create or read the file, and lock it.

        The directory is made if it is missing (mode 0700). What an earlier manager left is then in
        `pending`; nothing is undone yet.

        Raises:
            AlreadyRunning: a live process has it open.
            DiagnosedError: it cannot be created or read (``ANBOX-C004``).
        """
        if self._descriptor >= 0:
            return
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            while True:
                descriptor = os.open(
                    self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600
                )
                try:
                    if self._lock(descriptor):
                        break
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)  # its last holder has just deleted it
        except OSError as error:
            raise DiagnosedError.of(
                "ANBOX-C004",
                "the undo journal cannot be opened",
                str(error),
                f"make {os.path.dirname(self.path)!r} writable, or choose another --data-path",
            ) from error
        self._descriptor = descriptor
        try:
            self._load()
            self._append({"op": "open", "v": VERSION, "pid": os.getpid(), "time": self._now()})
        except BaseException:
            self._descriptor = -1
            os.close(descriptor)
            raise

    def _lock(self, descriptor: int) -> bool:
        """Lock the file; False if it is not the one under our name any more."""
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", self.path)
        # A manager that was killed while it started a tool leaves a child that is not yet that tool and has the lock,
        # for a moment: it is nobody's. Such a moment is worth blocking for.
        deadline = time.monotonic() + ORPHAN_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pid = self._holder_pid(descriptor)
                alive = pid == 0 or process_lives(pid, self.context.proc)
                if not alive and time.monotonic() < deadline:
                    time.sleep(ORPHAN_POLL_S)
                    continue
            holder = self._holder(descriptor)
            raise AlreadyRunning(
                f"the instance is held by another manager{holder}",
                "stop it, or choose another instance",
                code="ANBOX-C007",
            ) from None
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino)

    def _holder_pid(self, descriptor: int) -> int:
        """The pid of the last who has opened it; 0 if it does not say."""
        pid = 0
        for record in self._records(os.pread(descriptor, MAX_JOURNAL_BYTES, 0)):
            if record is not None and record.get("op") == "open":
                pid = record.get("pid", 0)
        return pid if isinstance(pid, int) and pid > 0 else 0

    def _holder(self, descriptor: int) -> str:
        """Who has it open, as ``", pid 12, command x"``."""
        pid = self._holder_pid(descriptor)
        if not pid:
            return ""
        try:
            with open(f"{self.context.proc}/{pid}/cmdline", "rb") as file:
                command = file.read(4096).replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:
            return f", pid {pid}"
        return f", pid {pid}, command {command[:200]!r}"

    @staticmethod
    def _records(data: bytes) -> Iterator[dict[str, Any] | None]:
        """Each line's object; ``None`` for one that is damaged."""
        for line in data.split(b"\n"):
            if not line:
                continue
            text, tab, crc = line.rpartition(b"\t")
            try:
                if not tab or int(crc, 16) != zlib.crc32(text):
                    raise ValueError("CRC")
                record = json.loads(text)
                yield record if isinstance(record, dict) else None
            except (ValueError, RecursionError):
                yield None

    def _load(self) -> None:
        data = os.pread(self._descriptor, MAX_JOURNAL_BYTES + 1, 0)
        if len(data) > MAX_JOURNAL_BYTES:
            raise DiagnosedError.of(
                "ANBOX-C017",
                "the undo journal is too long to be one",
                f"{self.path} has more than {MAX_JOURNAL_BYTES} bytes",
                f"look at what it names, then delete {self.path}",
            )
        self._pending.clear()
        self.damaged_lines = 0
        self.last_phase = ""
        for record in self._records(data):
            if record is None or not self._apply(record):
                self.damaged_lines += 1
        self._next = max((*self._pending, self._next - 1), default=0) + 1
        if data and not data.endswith(b"\n"):
            os.pwrite(self._descriptor, b"\n", len(data))
        os.lseek(self._descriptor, 0, os.SEEK_END)
        if self.damaged_lines:
            self._log.warn(
                "{path}: {count} damaged line(s) in the undo journal are left out; the others are undone",
                path=self.path,
                count=self.damaged_lines,
            )

    def _apply(self, record: dict[str, Any]) -> bool:
        """Take one record of the file in; False if it makes no sense."""
        op, number, args = record.get("op"), record.get("n"), record.get("args")
        if op == "open":
            return True
        if op == "phase" and isinstance(record.get("name"), str):
            self.last_phase = record["name"]
            return True
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            return False
        self._next = max(self._next, number + 1)
        if op == "do" and isinstance(record.get("kind"), str) and isinstance(args, dict):
            self._pending[number] = Entry(number, record["kind"], args, _number(record.get("time")))
            return True
        if op == "more" and isinstance(args, dict):
            if number in self._pending:
                entry = self._pending[number]
                self._pending[number] = attrs.evolve(entry, args={**entry.args, **args})
            return True
        if op == "done":
            self._pending.pop(number, None)
            return True
        return False

    def _append(self, record: dict[str, Any], *, sync: bool = False) -> None:
        """Write one line, and if asked have it on the disk before returning.

        Raises:
            DiagnosedError: it cannot be written; then what it announces must not be done.
        """
        if self._descriptor < 0:
            raise RuntimeError(f"the journal {self.path} is not open")
        text = json.dumps(record, separators=(",", ":")).encode()
        line = b"%s\t%08x\n" % (text, zlib.crc32(text))
        if len(line) > MAX_LINE_BYTES:
            raise DiagnosedError.of(
                "ANBOX-C024", "an entry of the undo journal is too long", f"{len(line)} bytes"
            )
        start = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):  # a disk that has just become full
                os.ftruncate(self._descriptor, start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            if sync:
                os.fdatasync(self._descriptor)
        except OSError as error:
            code = "ANBOX-C023" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "ANBOX-C004"
            raise DiagnosedError.of(code, "the undo journal cannot be written", str(error)) from error

    def close(self) -> None:
        """Give the lock back; the file is deleted if nothing is left to undo."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        if not self._pending:
            try:
                os.unlink(self.path)
            except OSError as error:
                self._log.warn("{path} could not be deleted: {error}", path=self.path, error=error)
        os.close(descriptor)

    @property
    def is_open(self) -> bool:
        """We hold the lock."""
        return self._descriptor >= 0

    # -- entries --

    @property
    def pending(self) -> list[Entry]:
        """What is to be undone, oldest first."""
        return [self._pending[number] for number in sorted(self._pending)]

    def record(self, kind: str, **args: Any) -> Entry:
        """Write a change down, before it is made.

        Args:
            kind: name of a registered kind.
            args: what undoing needs; JSON-able.

        Raises:
            DiagnosedError: it could not be written, or a stop is undoing what was made so far: then the
                change must not be made.
            ValueError: no such kind is registered.
        """
        known = self.kinds.get(kind)
        if known is None:
            raise ValueError(f"no undo kind {kind!r} is registered")
        if self._undoing:
            raise DiagnosedError.of(
                "ANBOX-C022", f"not made, for all is being undone: {known.describe(args)}"
            )
        entry = Entry(self._next, kind, args, self._now())
        record = {"op": "do", "n": entry.number, "kind": kind, "args": args, "time": entry.timestamp}
        self._next += 1
        # In memory before it is in the file: should writing fail half-way, undoing what never was
        # costs nothing.
        self._pending[entry.number] = entry
        self._append(record, sync=True)
        self.on_record(known.describe(args))
        return entry

    def more(self, entry: Entry, **args: Any) -> Entry:
        """Write down what became known about a change only when it was made, such as a pid.

        Returns:
            The entry with the additional arguments.
        """
        if entry.number not in self._pending:
            return entry
        entry = attrs.evolve(entry, args={**entry.args, **args})
        self._pending[entry.number] = entry
        self._append({"op": "more", "n": entry.number, "args": args}, sync=True)
        return entry

    def done(self, entry: Entry) -> None:
        """The change is not there any more. Telling it twice does no harm."""
        if self._pending.pop(entry.number, None) is None:
            return
        if not self._pending:
            # An empty file says it best, and keeps a container that is started for ever from growing it.
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            self._append({"op": "open", "v": VERSION, "pid": os.getpid(), "time": self._now()})
        else:
            self._append({"op": "done", "n": entry.number})

    def phase(self, name: str) -> None:
        """Write down which phase of the container's life begins; `last_phase` tells it after a crash."""
        self._append({"op": "phase", "name": name, "time": self._now()})

    # -- undoing --

    def undo_all(self) -> Deferred[None]:
        """Undo all that is pending, the newest first.

        One failure does not keep the others from being undone. Called again while it runs, it waits for
        the same run. Cancelling the Deferred stops the waiting, not the undoing.

        Returns:
            Fires when nothing is pending, or fails with `UndoFailed`; what failed stays pending.
        """
        waiter: Deferred[None] = Deferred(lambda d: self._waiters.remove(d) if d in self._waiters else None)
        self._waiters.append(waiter)
        if not self._undoing:
            self._undoing = True
            ensureDeferred(self._undo_all()).addBoth(self._undone)
        return waiter

    def _undone(self, result: Any) -> None:
        self._undoing = False
        waiters, self._waiters = self._waiters, []
        if isinstance(result, Failure) and not waiters:
            self._log.error("undoing failed: {error}", error=result.value)
        for waiter in waiters:
            waiter.callback(None) if result is None else waiter.errback(result)

    async def _undo_all(self) -> None:
        failures = []
        for entry in reversed(self.pending):
            failure = await self._undo(entry)
            if failure is None:
                self.done(entry)
            else:
                self._log.warn("{what} could not be undone: {why}", what=failure.what, why=failure.why)
                failures.append(failure)
        if failures:
            raise UndoFailed(failures)

    async def _undo(self, entry: Entry) -> UndoFailure | None:
        kind = self.kinds.get(entry.kind)
        if kind is None:
            return UndoFailure(
                entry, f"a change of the unknown kind {entry.kind!r}", "a newer version made it"
            )
        what, by_hand = f"a change of the kind {entry.kind!r}", ""
        try:
            what, by_hand = kind.describe(entry.args), kind.by_hand(entry.args)
            undone = ensureDeferred(kind.undo(entry.args, self.context))
            undone.addTimeout(UNDO_TIMEOUT_S, self.context.reactor)
            await undone
        except DiagnosedError as error:
            return UndoFailure(entry, what, error.diagnosis.summary(), by_hand)
        except Exception as error:
            # A damaged entry may make its undo fail in any way; the others must still be undone.
            return UndoFailure(entry, what, f"{type(error).__name__}: {error}", by_hand)
        self._log.debug("undone: {what}", what=what)
        return None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
