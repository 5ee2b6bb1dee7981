"""Files below /proc/sys/net: written, noted before, and brought back."""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.logger import Logger

from anbox_tw.netd.forwarding import FORWARD4, FORWARD6, ForwardingClaims
from anbox_tw.netd.kernel_journal import KernelJournal
from anbox_tw.netd.namespace import NetworkNamespace

__all__ = ["Sysctls"]


class Sysctls:
    """The files of one namespace that we write.

    Attributes:
        forwarding: our need of the forwarding switches.
    """

    _log = Logger()

    def __init__(
        self,
        namespace: NetworkNamespace,
        journal: KernelJournal,
        forwarding: ForwardingClaims | None = None,
        dry_run: Callable[[str], object] | None = None,
    ) -> None:
        """Make the object; nothing is touched yet.

        Args:
            namespace: whose files.
            journal: takes the notes.
            forwarding: holds our need of the forwarding switches; by default claims of our own.
            dry_run: called with each change instead of making it.
        """
        self._namespace = namespace
        self._journal = journal
        self._dry_run = dry_run
        self.forwarding = forwarding or ForwardingClaims(namespace)

    def _would(self, text: str) -> bool:
        if self._dry_run is None:
            return False
        self._dry_run(text)
        return True

    def write(self, path: str, value: str) -> None:
        """Write a file below /proc/sys/net.

        Raises:
            OSError: it is not there, or not writable.
        """
        if self._would(f"echo {value} > {path}"):
            return
        self._journal.note_sysctl(path, self._namespace.read_file(path).strip(), value.strip())
        self._namespace.write_file(path, value)

    def forward(self, path: str) -> None:
        """Switch forwarding on, and need it until `stop_forwarding` or the end.

        Args:
            path: `FORWARD4` or `FORWARD6`.

        Raises:
            OSError: it is not there, or not writable.
        """
        if self._would(f"echo 1 > {path}"):
            return
        now = self._namespace.read_file(path).strip()
        try:
            before = self.forwarding.claim(path, now)
            # where another of us has switched it on already, only that one knows what the interfaces had
            self._switch(path, before, "1", self._switches_under(path) if before == now else [])
        except BaseException:
            self.forwarding.release(path)
            raise

    def _switch(self, path: str, before: str, value: str, under: list[str]) -> None:
        self._journal.note_sysctl(path, before, value)
        # writing it writes every interface's, so these are noted, too
        for each in under:
            try:
                self._journal.note_sysctl(each, self._namespace.read_file(each).strip(), value)
            except FileNotFoundError:
                pass  # an interface that has just gone
        self._namespace.write_file(path, value)

    def stop_forwarding(self, path: str) -> None:
        """Need it no more: unless others of us do, it is as it was before the first of us."""
        note = self._journal.sysctls.get(path)
        if note is None and self._dry_run is None:
            return
        before = note.before if note is not None else "0"
        if self._would(f"echo {before} > {path}"):
            return
        self.forwarding.release(path)
        mine = [each for each in (path, *self._switches_under(path)) if each in self._journal.sysctls]
        if not self.forwarding.wanted(path):
            self._bring_back(mine)
        # else it is another's turn, which knows what it was before
        for each in mine:
            self._journal.forget_sysctl(each)

    def _switches_under(self, path: str) -> list[str]:
        """The forwarding switches of the interfaces, and of those to come."""
        version = "ipv4" if path == FORWARD4 else "ipv6"
        with self._namespace.entered():
            names = os.listdir(f"/proc/sys/net/{version}/conf")
        # `all` is the switch itself
        return [f"/proc/sys/net/{version}/conf/{name}/forwarding" for name in names if name != "all"]

    def undo(self) -> None:
        """Bring back what still is as we made it; what cannot be is logged."""
        self.forwarding.close()
        left: set[str] = set()
        for path in (FORWARD4, FORWARD6):
            if path in self._journal.sysctls and self.forwarding.wanted(path):
                left |= {path, *self._switches_under(path)}
        self._bring_back([path for path in self._journal.sysctls if path not in left])

    def _bring_back(self, paths: list[str]) -> None:
        notes = sorted(((path, self._journal.sysctls[path]) for path in paths), key=lambda item: len(item[0]))
        # looked at before the first is written: forwarding for all writes those of the interfaces
        ours = {path for path, note in notes if self._read(path) in note.ours}
        for path, note in notes:
            if path in ours and self._read(path) != note.before:
                try:
                    self._namespace.write_file(path, note.before)
                except OSError as error:
                    self._log.warn("{path}: {error}", path=path, error=error.strerror)

    def _read(self, path: str) -> str | None:
        try:
            return self._namespace.read_file(path).strip()
        except OSError:
            return None  # of an interface that is gone
