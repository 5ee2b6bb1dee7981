"""The clipboard of the desktop that the session runs on, through the tools that every desktop has.

``wl-copy`` and ``wl-paste`` under Wayland, ``xclip`` or ``xsel`` under X. They are asked when somebody pastes, so there is
nothing to keep in step and no loop between the two sides: the guest's text goes to the host once, when the guest copies,
and a text that the host has already is not set again.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredLock, ensureDeferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.interfaces import IClipboard
from anbox_tw.session.clipboard import MAX_CLIPBOARD_CHARS, Clipboard

__all__ = ["CLIPBOARDS", "ClipboardTools", "HostClipboard", "find_tools", "make_clipboard"]

TOOL_LIMIT_S = 5.0
"""A tool that asks an application which does not answer waits for ever; the one who pastes does not."""

MAX_CLIPBOARD_BYTES = 4 * MAX_CLIPBOARD_CHARS
"""As much UTF-8 as the most characters can be."""

MAX_COMPLAINT_BYTES = 2048

EMPTY_ATTEMPTS = 3
"""How often is looked before nothing, without a complaint, is taken for an empty text: on a busy host a tool comes between
two owners, or gives up on a large text that another tool hands out in parts, and says so to nobody."""

SET_ATTEMPTS = 2
"""How often a text is given to the tool: the child of xsel that owns a large one is gone at times."""

SEEN_ATTEMPTS = 10
SEEN_AGAIN_S = 0.05
"""How often, and how far apart, is looked whether a text that was set can be seen."""


@attrs.frozen
class ClipboardTools:
    """How a desktop's clipboard is reached.

    Attributes:
        name: as ``--clipboard`` knows it.
        display: the environment variable that says that such a desktop is there.
        copy: command that takes the text on its standard input.
        paste: command that prints it.
        clear: command for an empty text where ``copy`` cannot set one, or empty.
    """

    name: str
    display: str
    copy: tuple[str, ...]
    paste: tuple[str, ...]
    clear: tuple[str, ...] = ()


CLIPBOARDS: Mapping[str, ClipboardTools] = {
    tools.name: tools
    for tools in (
        ClipboardTools(
            "wayland",
            "WAYLAND_DISPLAY",
            ("wl-copy", "--type", "text/plain;charset=utf-8"),
            ("wl-paste", "--no-newline", "--type", "text"),
            ("wl-copy", "--clear"),
        ),
        ClipboardTools(
            "xclip",
            "DISPLAY",
            ("xclip", "-selection", "clipboard", "-in", "-target", "UTF8_STRING"),
            ("xclip", "-selection", "clipboard", "-out", "-target", "UTF8_STRING"),
        ),
        ClipboardTools(
            "xsel",
            "DISPLAY",
            ("xsel", "--clipboard", "--input"),
            ("xsel", "--clipboard", "--output"),
            ("xsel", "--clipboard", "--clear"),
        ),
    )
}
"""In the order in which they are tried."""


def find_tools(environ: Mapping[str, str], wanted: str = "auto") -> ClipboardTools | None:
    """The tools to use here, or None when no desktop, or no tool, is there.

    Args:
        environ: of the session.
        wanted: ``auto``, or one of `CLIPBOARDS`.
    """
    for name, tools in CLIPBOARDS.items():
        if wanted in ("auto", name) and environ.get(tools.display):
            path = environ.get("PATH", os.defpath)
            if shutil.which(tools.copy[0], path=path) and shutil.which(tools.paste[0], path=path):
                return tools
    return None


def make_clipboard(reactor: Any, environ: Mapping[str, str], wanted: str = "auto") -> IClipboard:
    """The clipboard of a session: the desktop's, or one of its own.

    Args:
        reactor: runs the tools.
        environ: of the session.
        wanted: ``auto``, ``private`` for one of its own, or one of `CLIPBOARDS`.
    """
    tools = None if wanted == "private" else find_tools(environ, wanted)
    if tools is not None:
        return HostClipboard(reactor, tools, environ)
    if wanted not in ("auto", "private"):
        Logger(namespace=__name__).warn(
            "There is no {wanted} clipboard here ({variable} or {tool} is missing): the session keeps its own",
            wanted=wanted,
            variable=CLIPBOARDS[wanted].display,
            tool=CLIPBOARDS[wanted].copy[0],
        )
    return Clipboard()


class _Tool(ProcessProtocol):
    """One run of a tool. The end of the process counts, not of its pipes: the copying ones leave a child behind."""

    def __init__(self, reactor: Any, text: bytes, complaint: int, wants_output: bool) -> None:
        self._reactor = reactor
        self._text = text
        self._wants_output = wants_output
        self._complaint = complaint
        self._output = bytearray()
        self._timer: IDelayedCall | None = None
        self._why = ""
        self.done: Deferred[tuple[bytes, str]] = Deferred(lambda _: self._kill("it was cancelled"))
        """Fires with the output, and why it failed or an empty string."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self._timer = self._reactor.callLater(
            TOOL_LIMIT_S, self._kill, f"it did not end within {TOOL_LIMIT_S:g} s"
        )
        if self._text:
            self.transport.write(self._text)
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._output += data
        if len(self._output) > MAX_CLIPBOARD_BYTES:
            # The text is cut; who has more to say need not say it.
            del self._output[MAX_CLIPBOARD_BYTES:]
            self._kill("")

    def _kill(self, why: str) -> None:
        self._why = self._why or why
        if self.transport is not None:
            try:
                self.transport.signalProcess(signal.SIGKILL)
            except ProcessExitedAlready:
                pass

    def processExited(self, reason: Failure) -> None:
        cut = len(self._output) >= MAX_CLIPBOARD_BYTES
        if not reason.check(ProcessDone) and not cut and not self._why:
            said = os.pread(self._complaint, MAX_COMPLAINT_BYTES, 0).decode(errors="replace").strip()
            self._why = said or f"it ended with {reason.value}"
        if not self._wants_output:
            # Its child holds standard error open.
            self._finish()

    def processEnded(self, reason: Failure) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if not self.done.called:
            os.close(self._complaint)
            self.done.callback((bytes(self._output), self._why))


@implementer(IClipboard)
class HostClipboard:
    """The desktop's clipboard. While its tools fail, what was set last is kept here, and the failure is told once.

    Args:
        reactor: runs the tools.
        tools: which.
        environ: for them.
    """

    _log = Logger()

    def __init__(self, reactor: Any, tools: ClipboardTools, environ: Mapping[str, str]) -> None:
        self._reactor = reactor
        self.tools = tools
        self._environ = dict(environ)
        self._own = Clipboard()
        self._failed = False
        # One after the other: a paste behind a copy sees it.
        self._lock = DeferredLock()

    def get_text(self) -> Deferred[str]:
        """The text that the desktop has; empty when it has none, or something else than text."""
        return self._lock.run(lambda: ensureDeferred(self._get()))

    def set_text(self, text: str) -> Deferred[None]:
        """Give the desktop a text, unless it has it already."""
        return self._lock.run(lambda: ensureDeferred(self._set(text[:MAX_CLIPBOARD_CHARS])))

    async def _get(self) -> str:
        output, why = b"", ""
        for attempt in range(EMPTY_ATTEMPTS):
            if attempt:
                await deferLater(self._reactor, SEEN_AGAIN_S)
            output, why = await self._run(self.tools.paste, b"", output=True)
            if output or why:
                break
        if why and not _says_empty(why):
            self._tell(why)
            return await self._own.get_text()
        if not why and not output and self._failed:
            return await self._own.get_text()
        if not why:
            self._failed = False
        return output.decode(errors="replace").replace("\0", "")[:MAX_CLIPBOARD_CHARS]

    async def _set(self, text: str) -> None:
        await self._own.set_text(text)
        current, why = await self._run(self.tools.paste, b"", output=True)
        data = text.encode(errors="replace")
        if not why and current == data:
            return
        command = self.tools.clear if not data and self.tools.clear else self.tools.copy
        for _ in range(SET_ATTEMPTS):
            _, why = await self._run(command, data, output=False)
            if why:
                self._tell(why)
                return
            if await self._is_seen(data):
                self._failed = False
                return
        self._tell("the text was given to it and is not there")

    async def _is_seen(self, data: bytes) -> bool:
        # xsel returns before its child owns the selection; others shall see the text when we say so.
        for _ in range(SEEN_ATTEMPTS):
            current, why = await self._run(self.tools.paste, b"", output=True)
            if current == data and (not why or _says_empty(why)):
                return True
            await deferLater(self._reactor, SEEN_AGAIN_S)
        return False

    def _tell(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            self._log.warn(
                "The clipboard of the desktop cannot be reached through {tool}, so the session keeps the text: {why}",
                tool=self.tools.copy[0],
                why=why,
            )

    def _run(self, command: tuple[str, ...], text: bytes, *, output: bool) -> Deferred[tuple[bytes, str]]:
        complaint = os.memfd_create("complaint")
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        tool = _Tool(self._reactor, text, complaint, output)
        descriptors: dict[int, Any] = {0: "w", 1: "r" if output else nothing, 2: complaint}
        path = shutil.which(command[0], path=self._environ.get("PATH", os.defpath))
        try:
            if path is None:
                raise FileNotFoundError(2, f"{command[0]} is not installed any more")
            self._reactor.spawnProcess(tool, path, list(command), env=self._environ, childFDs=descriptors)
        except OSError as error:
            os.close(complaint)
            if not tool.done.called:
                tool.done.callback((b"", error.strerror or str(error)))
        finally:
            os.close(nothing)
        return tool.done


def _says_empty(why: str) -> bool:
    """Whether a tool only found no text: each has words of its own for it, and the same exit code as for the rest."""
    words = ("nothing is copied", "no selection", "no suitable type", "not available", "no owner")
    return any(word in why.lower() for word in words)
