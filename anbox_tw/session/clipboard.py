"""The clipboard that host and guest share while nothing of the desktop's is attached."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from anbox_tw.interfaces import IClipboard

__all__ = ["MAX_CLIPBOARD_CHARS", "Clipboard"]

MAX_CLIPBOARD_CHARS = 1 << 20
"""A guest may set the clipboard; more than this is cut off."""


@implementer(IClipboard)
class Clipboard:
    """Keeps the text in this process."""

    def __init__(self) -> None:
        self._text = ""

    def get_text(self) -> Deferred[str]:
        """What was set last."""
        return succeed(self._text)

    def set_text(self, text: str) -> Deferred[None]:
        """Replace the text."""
        self._text = text[:MAX_CLIPBOARD_CHARS]
        return succeed(None)
