"""Who may use a device: allowed keys and what becomes of an unknown one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from anbox_tw.adb.keys import AdbKeyError, PublicKey, load_public_keys

__all__ = ["POLICIES", "Authority"]

POLICIES = ("open", "accept", "ask", "refuse")
"""``open``: no authentication at all, as ``ro.adb.secure=0``. ``accept``: authenticate, and let an
unknown key in. ``ask``: ask ``Authority.ask``. ``refuse``: unknown keys stay outside."""


class Authority:
    """A device's allowed keys.

    Args:
        policy: one of ``POLICIES``.
        keys: keys that are allowed from the start.
        key_files: files in the form of ``adb_keys``; read at each connection, so that editing them
            counts at once. Files that do not exist are empty.
        store: file that newly allowed keys are added to, or None to forget them at the end.
        ask: for the policy ``ask``: gets the offered key, answers True or False, or a Deferred.
    """

    _log = Logger()

    def __init__(
        self,
        policy: str = "open",
        *,
        keys: Iterable[PublicKey] = (),
        key_files: Iterable[str] = (),
        store: str | None = None,
        ask: Callable[[PublicKey], bool | Deferred[bool]] | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise AdbKeyError(f"unknown key policy {policy!r}", f"one of {', '.join(POLICIES)}")
        if policy == "ask" and ask is None:
            raise AdbKeyError("the key policy is ask, but there is nobody to ask")
        self.policy = policy
        self._keys = set(keys)
        self._files = [*key_files, *([store] if store else [])]
        self._store = store
        self._ask = ask

    def keys(self) -> set[PublicKey]:
        """The keys that are allowed now."""
        found = set(self._keys)
        for path in self._files:
            if not os.path.exists(path):
                continue
            try:
                found.update(load_public_keys([path]))
            except AdbKeyError as error:
                self._log.warn("cannot read allowed keys: {error}", error=error)
        return found

    def signer(self, token: bytes, signature: bytes) -> PublicKey | None:
        """The allowed key that made ``signature`` over ``token``, or None."""
        return next((key for key in self.keys() if key.verify(token, signature)), None)

    def allows(self, key: PublicKey) -> bool:
        """Whether a TLS host with ``key`` may enter; an unknown one only where no question is needed."""
        return self.policy in ("open", "accept") or key in self.keys()

    def offer(self, text: str) -> Deferred[PublicKey | None]:
        """A host offers its key. Fires with the key when it is allowed from now on, else with None."""
        try:
            key = PublicKey.from_text(text)
        except AdbKeyError as error:
            self._log.info("a host offers something that is no key: {error}", error=error)
            return succeed(None)
        if self.policy in ("open", "accept"):
            self.allow(key)
            return succeed(key)
        if self.policy == "ask":
            assert self._ask is not None

            def answered(yes: bool) -> PublicKey | None:
                if not yes:
                    return None
                self.allow(key)
                return key

            answer = self._ask(key)
            asked = answer if isinstance(answer, Deferred) else succeed(answer)
            return asked.addCallback(answered)
        return succeed(None)

    def allow(self, key: PublicKey) -> None:
        """Allow ``key`` from now on, and store it if there is a store."""
        if key in self.keys():
            return
        self._keys.add(key)
        if self._store is None:
            return
        try:
            os.makedirs(os.path.dirname(self._store) or ".", mode=0o750, exist_ok=True)
            handle = os.open(self._store, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            with os.fdopen(handle, "w") as file:
                file.write(f"{key.to_text()}\n")
        except OSError as error:
            self._log.warn("cannot store the allowed key in {path}: {error}", path=self._store, error=error)

    def revoke(self, key: PublicKey) -> None:
        """Forget ``key``; transports that entered with it are the caller's to close. Files are not changed."""
        self._keys.discard(key)
