"""Why a container does not run: stable codes, and for each what to do.

A code is never given a second meaning and never removed. The table below is what
``docs/containers.md`` lists (a test compares them).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure

from anbox_tw.errors import AlreadyRunning, AnboxError, ContainerError, ExitCode, HostLacks

__all__ = ["CODES", "CodeEntry", "DiagnosedError", "Diagnosis", "Probe", "diagnose", "log_tail"]

LOG_TAIL_LINES = 20  # what fits on a terminal below the diagnosis itself
LOG_TAIL_BYTES = 8192  # read from the end of a log file; 20 long lines
MAX_LOG_LINE = 400  # characters of one line


@attrs.frozen
class CodeEntry:
    """One row of the table of codes.

    Attributes:
        title: what it means, in a few words.
        cure: what to do when nothing more precise is known.
        exit_code: how a command that fails with it exits.
    """

    title: str
    cure: str
    exit_code: ExitCode = ExitCode.FAILED


CODES: Mapping[str, CodeEntry] = {
    "ANBOX-C001": CodeEntry(
        "the request itself is not valid", "correct the option that is named", ExitCode.USAGE
    ),
    "ANBOX-C002": CodeEntry("the rootfs or image does not exist", "check --rootfs or --android-image"),
    "ANBOX-C003": CodeEntry("the image is not one we can mount", "give a squashfs or ext4 image of Android"),
    "ANBOX-C004": CodeEntry("the data path cannot be used", "choose a writable directory with --data-path"),
    "ANBOX-C005": CodeEntry(
        "the runtime directory cannot be used", "set XDG_RUNTIME_DIR, or choose one with --runtime-dir"
    ),
    "ANBOX-C006": CodeEntry(
        "the host lacks what the backend needs", "run `anbox doctor`", ExitCode.HOST_LACKS
    ),
    "ANBOX-C007": CodeEntry(
        "another manager holds the instance", "stop the other manager, or choose another --instance"
    ),
    "ANBOX-C008": CodeEntry(
        "a bind mount's source cannot be used", "check that the source exists and that the owner may read it"
    ),
    "ANBOX-C009": CodeEntry(
        "a device cannot be given to the container", "check that the node exists on the host"
    ),
    "ANBOX-C010": CodeEntry(
        "the kernel refuses namespaces",
        "run `anbox doctor`; without them use --isolation plain, or start as root",
        ExitCode.HOST_LACKS,
    ),
    "ANBOX-C011": CodeEntry("a mount failed", "see the log, and `dmesg` for the kernel's reason"),
    "ANBOX-C012": CodeEntry("the engine ended before the container ran", "see the log's tail"),
    "ANBOX-C013": CodeEntry(
        "init cannot be executed", "check that the program exists in the rootfs and is executable"
    ),
    "ANBOX-C014": CodeEntry("the container ended by itself", "see the log's tail"),
    "ANBOX-C015": CodeEntry(
        "a phase took too long", "see the log; on a slow machine start again", ExitCode.TIMED_OUT
    ),
    "ANBOX-C016": CodeEntry("the container's network could not be set up", "run `anbox doctor`"),
    "ANBOX-C017": CodeEntry(
        "something that was made could not be undone", "undo it by hand as the text says, then start again"
    ),
    "ANBOX-C018": CodeEntry("the container could not be stopped", "look for a process in state D with `ps`"),
    "ANBOX-C019": CodeEntry("a control group could not be used", "run `anbox doctor`"),
    "ANBOX-C020": CodeEntry(
        "the image could not be mounted", "check /dev/loop-control, or try --force-squashfuse"
    ),
    "ANBOX-C021": CodeEntry(
        "the id map could not be set", "check /etc/subuid and /etc/subgid", ExitCode.HOST_LACKS
    ),
    "ANBOX-C022": CodeEntry("the start was stopped", "start again"),
    "ANBOX-C023": CodeEntry("the disk is full", "free some space, or choose another --data-path"),
    "ANBOX-C024": CodeEntry("a defect in anbox-tw", "please report it with the log"),
    "ANBOX-C025": CodeEntry("a tool is missing", "install the package that is named", ExitCode.HOST_LACKS),
}


@attrs.frozen
class Probe:
    """One thing the host was asked about.

    Attributes:
        name: what was looked at, for example ``user namespaces``.
        ok: it is there and works.
        detail: what was found.
        cure: what to do when it is not ok, or an empty string.
        required: without it the backend cannot run at all; otherwise it only does less.
    """

    name: str
    ok: bool
    detail: str
    cure: str = ""
    required: bool = True

    @property
    def verdict(self) -> str:
        """``ok``, ``missing`` (the backend cannot run) or ``degraded`` (it does less)."""
        if self.ok:
            return "ok"
        return "missing" if self.required else "degraded"

    def as_dict(self) -> dict[str, Any]:
        """The probe for ``--json``."""
        return {**attrs.asdict(self), "verdict": self.verdict}


def _lines(value: Sequence[str]) -> tuple[str, ...]:
    return tuple(value)


@attrs.frozen
class Diagnosis:
    """What failed, why, and what to do.

    Attributes:
        code: key of `CODES`.
        what: what failed, one sentence without a full stop.
        why: the reason as exactly as known, or an empty string.
        cure: what to do.
        log_tail: last lines of the engine's and init's logs, oldest first.
    """

    code: str
    what: str
    why: str = ""
    cure: str = ""
    log_tail: Sequence[str] = attrs.field(default=(), converter=_lines)

    def as_dict(self) -> dict[str, Any]:
        """The diagnosis for RPC events and ``--json``."""
        return {**attrs.asdict(self), "log_tail": list(self.log_tail)}

    def lines(self) -> list[str]:
        """The diagnosis for a terminal."""
        text = [f"{self.code}: {self.what}"]
        if self.why:
            text.append(f"  why:  {self.why}")
        if self.cure:
            text.append(f"  cure: {self.cure}")
        if self.log_tail:
            text.append("  log:")
            text.extend(f"    {line}" for line in self.log_tail)
        return text

    def summary(self) -> str:
        """What failed and why, in one line and without the code."""
        return f"{self.what}: {self.why}" if self.why else self.what


class DiagnosedError(ContainerError):
    """A container error that carries its diagnosis.

    Attributes:
        diagnosis: code, what, why, cure and log tail.
    """

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.summary(), diagnosis.cure, code=diagnosis.code)
        self.diagnosis = diagnosis
        self.exit_code = CODES[diagnosis.code].exit_code if diagnosis.code in CODES else ExitCode.FAILED

    @classmethod
    def of(
        cls, code: str, what: str, why: str = "", cure: str = "", log_tail: Sequence[str] = ()
    ) -> DiagnosedError:
        """Make one; without ``cure`` it is the one of the table."""
        return cls(Diagnosis(code, what, why, cure or CODES[code].cure, tuple(log_tail)))


_ERRNO_CODES = {errno.ENOSPC: "ANBOX-C023", errno.EDQUOT: "ANBOX-C023"}


def diagnose(failure: Failure, phase: str, log_lines: Sequence[str] = ()) -> Diagnosis:
    """Say what a failure means to the user.

    Args:
        failure: why the phase ended.
        phase: name of the phase that failed.
        log_lines: tail of the logs; used when the error brings none itself.

    Returns:
        A diagnosis whose code is in `CODES`.
    """
    error = failure.value
    what = f"the phase '{phase}' failed"
    if isinstance(error, DiagnosedError):
        return (
            error.diagnosis
            if error.diagnosis.log_tail
            else attrs.evolve(error.diagnosis, log_tail=tuple(log_lines))
        )
    if isinstance(error, CancelledError):
        return _by_table("ANBOX-C022", f"stopped in the phase '{phase}'", "", log_lines)
    if isinstance(error, DeferredTimeout):
        return _by_table("ANBOX-C015", f"the phase '{phase}' took too long", str(error), log_lines)
    if isinstance(error, AnboxError):
        code = error.code if error.code in CODES else _code_by_class(error)
        return Diagnosis(code, what, error.cause, error.cure or CODES[code].cure, tuple(log_lines))
    if isinstance(error, OSError):
        code = _ERRNO_CODES.get(error.errno or 0, "ANBOX-C012")
        return _by_table(code, what, str(error), log_lines)
    return _by_table("ANBOX-C024", what, f"{type(error).__name__}: {error}", log_lines)


def _by_table(code: str, what: str, why: str, log_lines: Sequence[str]) -> Diagnosis:
    return Diagnosis(code, what, why, CODES[code].cure, tuple(log_lines))


def _code_by_class(error: AnboxError) -> str:
    if isinstance(error, HostLacks):
        return "ANBOX-C006"
    if isinstance(error, AlreadyRunning):
        return "ANBOX-C007"
    if error.exit_code is ExitCode.USAGE:
        return "ANBOX-C001"
    return "ANBOX-C012"


def log_tail(*paths: str, lines: int = LOG_TAIL_LINES) -> tuple[str, ...]:
    """Last lines of log files, in the order of the files; a file that cannot be read gives none.

    Reads at most `LOG_TAIL_BYTES` of each, so it may be called on the reactor's thread. Control
    characters, which a hostile guest could aim at the terminal, are made visible.
    """
    found: list[str] = []
    for path in paths:
        try:
            # O_NONBLOCK: should it be a FIFO, opening must not wait for a writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                continue
            size = status.st_size
            data = os.pread(descriptor, LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES))
        except OSError:
            continue
        finally:
            os.close(descriptor)
        texts = data.decode("utf-8", "replace").splitlines()
        if size > LOG_TAIL_BYTES:
            del texts[:1]  # cut in its middle
        found.extend(_printable(text) for text in texts[-lines:] if text.strip())
    return tuple(found[-lines:])


def _printable(text: str) -> str:
    shown = "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text)
    return shown if len(shown) <= MAX_LOG_LINE else shown[:MAX_LOG_LINE] + "..."
