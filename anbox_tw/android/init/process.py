"""A process that is an init and nothing else: signals, log, exit code.

SIGTERM, SIGINT, SIGPWR and SIGRTMIN+3 (how LXC asks, by the kind of init) end everything in order; SIGHUP, SIGUSR1
and SIGUSR2 go on to the services. It exits with 0 after that and after a shutdown, and with 100 after a request to
reboot (101 when the target is ``recovery``), for whoever runs the container to act on.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure

from anbox_tw.android.init.supervisor import PowerCommand
from anbox_tw.android.init_tap import InitService
from anbox_tw.errors import AnboxError, ExitCode

__all__ = ["EXIT_REBOOT", "EXIT_RECOVERY", "run_init"]

EXIT_REBOOT = 100
EXIT_RECOVERY = 101

FORWARDED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGPWR, signal.SIGRTMIN + 3)


def run_init(build: Callable[[Any, Callable[[PowerCommand], None]], InitService]) -> int:
    """Run an init until it is told to end.

    Args:
        build: makes it from the reactor and from what it has to call on ``powerctl``. It may set
            ``service.exit_code`` at any time.

    Returns:
        The exit code.
    """
    # the kernel throws away what process 1 has no handler for, unless it is blocked: none may get lost meanwhile
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    code: list[int] = []
    ending: list[Deferred[None]] = []

    def power(command: PowerCommand) -> None:
        if command.command == "reboot":
            code.append(EXIT_RECOVERY if command.target == "recovery" else EXIT_REBOOT)
        end()

    service = build(reactor, power)

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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        try:
            service.startService()
        except Exception as error:
            text = str(error) if isinstance(error, AnboxError) else f"{type(error).__name__}: {error}"
            sys.stderr.write(f"init: {text}\n")
            code.append(int(error.exit_code) if isinstance(error, AnboxError) else ExitCode.FAILED)
            end()  # what was begun is taken back

    reactor.callWhenRunning(begin)
    reactor.run()
    if service.exit_code is not None:
        return service.exit_code
    return code[0] if code else ExitCode.OK
