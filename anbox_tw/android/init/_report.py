"""Reads what a child says about itself before it becomes the service."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.android.init.spawn import MAX_REPORT_BYTES, parse_report

__all__ = ["ReportReader"]


@implementer(IReadDescriptor)
class ReportReader:
    """Collects a pipe to its end, then gives the entries, if there are any."""

    def __init__(
        self,
        reactor: Any,
        descriptor: int,
        callback: Callable[[list[dict[str, Any]]], None],
        registry: set[ReportReader],
    ) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._callback = callback
        self._registry = registry
        self._data = b""
        reactor.addReader(self)

    def fileno(self) -> int:
        """The pipe, -1 once it is closed."""
        return self._descriptor

    def logPrefix(self) -> str:
        """For the log."""
        return "init report"

    def doRead(self) -> None:
        """Take what is there."""
        try:
            data = os.read(self._descriptor, 4096)
        except BlockingIOError:
            return
        self._data += data
        if not data or len(self._data) > MAX_REPORT_BYTES:
            self._finish()

    def _finish(self) -> None:
        if self._descriptor < 0:
            return
        self.close()
        entries = parse_report(self._data)
        if entries:
            self._callback(entries)

    def connectionLost(self, reason: Failure) -> None:
        """The child's end is closed: some reactors say it so, without another read."""
        self._finish()

    def close(self) -> None:
        """Close the pipe and leave the registry."""
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1
        self._registry.discard(self)
