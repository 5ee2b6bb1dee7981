"""``python -m anbox_tw.android.init``: init as pid 1 of a container (or as any process of its own).

The options are those of ``twistd anbox-init``. SIGTERM, SIGINT, SIGPWR (how LXC asks) end everything in order;
SIGHUP, SIGUSR1 and SIGUSR2 go on to the services. It exits with 0 after a shutdown and 100 after a request to
reboot (101 when the target is ``recovery``), for whoever runs the container to act on.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.python import usage
from twisted.python.failure import Failure

from anbox_tw.android.init_tap import InitService, Options, build
from anbox_tw.errors import AnboxError, ExitCode

__all__ = ["EXIT_REBOOT", "EXIT_RECOVERY", "main"]

EXIT_REBOOT = 100
EXIT_RECOVERY = 101

FORWARDED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGPWR)


def main(argv: list[str] | None = None) -> int:
    """Run until told to end; returns the exit code."""
    options = Options()
    try:
        options.parseOptions(sys.argv[1:] if argv is None else argv)
    except usage.UsageError as error:
        sys.stderr.write(f"init: {error}\nTry --help.\n")
        return ExitCode.USAGE
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    code: list[int] = []

    def power(command: Any) -> None:
        if command.command == "reboot":
            code.append(EXIT_RECOVERY if command.target == "recovery" else EXIT_REBOOT)
        end()

    service: InitService = build(options, reactor, on_power=power)
    ending: list[Deferred[None]] = []

    def end() -> None:
        if not ending:
            ending.append(service.stopService())
            ending[0].addBoth(ended)

    def ended(result: Failure | None) -> None:
        if isinstance(result, Failure):
            sys.stderr.write(f"init: {result.getErrorMessage()}\n")
            code.append(ExitCode.FAILED)
        reactor.stop()

    def begin() -> None:
        for number in ENDING:
            signal.signal(number, lambda _number, _frame: reactor.callFromThread(end))
        for number in FORWARDED:
            signal.signal(
                number, lambda caught, _frame: reactor.callFromThread(service.init.forward_signal, caught)
            )
        try:
            service.startService()
        except AnboxError as error:
            sys.stderr.write(f"init: {error}\n")
            code.append(int(error.exit_code))
            reactor.stop()
        except Exception as error:
            sys.stderr.write(f"init: {type(error).__name__}: {error}\n")
            code.append(ExitCode.FAILED)
            reactor.stop()

    if os.getpid() == 1:
        # nobody above gives us these: a service must not find itself without
        os.environ.setdefault("PATH", os.defpath)
    reactor.callWhenRunning(begin)
    reactor.run(installSignalHandlers=True)
    return code[0] if code else ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
