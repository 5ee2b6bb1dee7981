"""``python -m anbox_tw.android.installd``: ``twistd anbox-installd`` in the foreground, for an init's service line."""

from __future__ import annotations

import sys
from typing import Any

from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.python import usage

from anbox_tw.android.installd_tap import Options, build
from anbox_tw.errors import AnboxError, ExitCode

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal ends it; returns the exit code."""
    options = Options()
    try:
        options.parseOptions(sys.argv[1:] if argv is None else argv)
    except usage.UsageError as error:
        sys.stderr.write(f"installd: {error}\nTry --help.\n")
        return ExitCode.USAGE
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    code: list[int] = []

    def begin() -> None:
        try:
            service = build(options, reactor)
            service.startService()
        except Exception as error:
            sys.stderr.write(f"installd: {error}\n")
            code.append(int(error.exit_code) if isinstance(error, AnboxError) else ExitCode.FAILED)
            reactor.stop()
            return
        reactor.addSystemEventTrigger("before", "shutdown", service.stopService)

    reactor.callWhenRunning(begin)
    reactor.run()
    return code[0] if code else ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
