"""The console's secret: a file in the user's home, as the emulator has it (``console_auth.cpp``), which ``adb emu`` reads too."""

from __future__ import annotations

import base64
import hmac
import os
import stat

from anbox_tw.errors import PermissionRefused

__all__ = ["TOKEN_FILE", "AuthToken"]

TOKEN_FILE = ".emulator_console_auth_token"  # noqa: S105  # the name of a file

TOKEN_BYTES = 12
"""96 random bits, as the emulator's: 16 characters of base64."""

MAX_FILE_BYTES = 4096
"""Of the token's file; a longer one holds something else."""


class AuthToken:
    """The secret, read anew each time it is wanted.

    Args:
        path: of its file; in the user's home by default.
    """

    def __init__(self, path: str = "") -> None:
        self.path = path or os.path.join(os.path.expanduser("~"), TOKEN_FILE)

    def load(self) -> str:
        """The secret; empty: nobody is asked for one. Made if there is no file.

        Raises:
            PermissionRefused: the file can be neither read nor made.
        """
        try:
            try:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                return self._read()
            return self._make(descriptor)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise PermissionRefused(
                f"the console's token {self.path} cannot be read: {why}", "remove it, and a new one is made"
            ) from error

    def matches(self, given: str) -> bool:
        """Whether ``given`` is the secret; takes as long for any wrong one.

        Raises:
            PermissionRefused: as `load`.
        """
        return hmac.compare_digest(self.load().encode(), given.encode())

    def _read(self) -> str:
        # a FIFO would hold the reactor
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError(self.path)
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(self.path)
        return data.decode("utf-8").strip()

    def _make(self, descriptor: int) -> str:
        token = base64.b64encode(os.urandom(TOKEN_BYTES)).decode("ascii")
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(token)
        except OSError:
            # an empty file would let everybody in
            os.unlink(self.path)
            raise
        return token
