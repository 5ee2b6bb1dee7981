"""What netd's commands fail with, and how an errno gets into a reply."""

from __future__ import annotations

import errno as errno_module
import os

from anbox_tw.errors import NetdError
from anbox_tw.netd.codes import ResponseCode

__all__ = ["CommandFailed", "DaemonFailed", "KernelRefused", "RequestRefused", "errno_of"]


class CommandFailed(NetdError):
    """A command ends with this reply.

    Attributes:
        reply_code: the response code.
        text: the reply.
        errno: put behind the text in parentheses when it is not None.
    """

    def __init__(self, reply_code: int, text: str, errno: int | None = None) -> None:
        super().__init__(
            f"{int(reply_code)} {text}" + (f" ({os.strerror(errno)})" if errno is not None else "")
        )
        self.reply_code = int(reply_code)
        self.text = text
        self.errno = errno


class KernelRefused(NetdError):
    """The kernel said no.

    Attributes:
        errno: its error number, positive.
        what: what was asked of it.
    """

    def __init__(self, errno: int, what: str, detail: str = "") -> None:
        super().__init__(f"{what}: {os.strerror(errno)}" + (f" ({detail})" if detail else ""))
        self.errno = errno
        self.what = what


class DaemonFailed(NetdError):
    """A daemon refused a command of ours: a 4xx reply (``NativeDaemonFailureException``).

    Attributes:
        reply_code: the response code; 0 when there was no reply.
    """

    def __init__(self, cause: str, cure: str = "", *, reply_code: int = 0) -> None:
        super().__init__(cause, cure)
        self.reply_code = reply_code


class RequestRefused(DaemonFailed):
    """A daemon found a command of ours wrong: a 5xx reply (``NativeDaemonArgumentException``)."""


def errno_of(error: BaseException, default: int = errno_module.EIO) -> int:
    """The error number behind an exception, or ``default``."""
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) and number > 0 else default


def syntax(text: str) -> CommandFailed:
    """A 500 reply."""
    return CommandFailed(ResponseCode.SYNTAX_ERROR, text)


def parameter(text: str) -> CommandFailed:
    """A 501 reply."""
    return CommandFailed(ResponseCode.PARAMETER_ERROR, text)


def failed(text: str, errno: int | None = None) -> CommandFailed:
    """A 400 reply."""
    return CommandFailed(ResponseCode.OPERATION_FAILED, text, errno)
