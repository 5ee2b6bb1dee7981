"""``python -m anbox_tw.guest``: see :mod:`anbox_tw.guest`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from anbox_tw.errors import AnboxError, ExitCode
from anbox_tw.guest._init import STOP_SIGNALS, run_as_init
from anbox_tw.guest.under_init import reboot

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anbox_tw.guest",
        description="The reference guest: adbd on /dev/qemu_pipe and the peer of /dev/anbox_bridge, for any Linux rootfs. "
        "May be process 1 of a container. Stops in order at SIGTERM, SIGINT and SIGPWR; logs to standard output.",
    )
    parser.add_argument(
        "--dev", default="/dev", metavar="DIR", help="where the session's sockets are [%(default)s]"
    )
    parser.add_argument("--root", default="/", metavar="DIR", help="what the guest takes as / [%(default)s]")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--services",
        action="store_true",
        help="run the guest as a service of Android's init, together with installd (always so as process 1)",
    )
    mode.add_argument("--alone", action="store_true", help="run the guest without init, also as process 1")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    clipboard = commands.add_parser("clipboard", help="print the host's clipboard, or set it")
    clipboard.add_argument("text", nargs="?", help="what to set; '-' reads standard input")
    manager = commands.add_parser("am", help="launch and stop applications, as Android's am", add_help=False)
    manager.add_argument("arguments", nargs=argparse.REMAINDER)
    hardware = commands.add_parser(
        "hal", help="use the hardware as Android's HALs do: hal --help", add_help=False
    )
    hardware.add_argument("arguments", nargs=argparse.REMAINDER)
    phone = commands.add_parser("ril", help="use the phone as Android's RIL does: ril --help", add_help=False)
    phone.add_argument("arguments", nargs=argparse.REMAINDER)
    play = commands.add_parser("play", help="play sound, as the audio HAL does")
    play.add_argument("file", help="WAV or raw samples (44100 Hz, 16 bits, stereo); '-' reads standard input")
    record = commands.add_parser("record", help="record sound, as the audio HAL does")
    record.add_argument(
        "-T", "--seconds", type=float, default=5.0, metavar="S", help="how much [%(default)s]"
    )
    record.add_argument("file", help="the WAV file to write; '-' writes raw samples to standard output")
    getevent = commands.add_parser(
        "getevent", help="print what the input devices send, as Android's getevent -lt"
    )
    getevent.add_argument(
        "-c", "--count", type=int, default=0, metavar="N", help="end after so many events [never]"
    )
    getevent.add_argument("-p", "--print", action="store_true", help="print what the devices are, and end")
    getevent.add_argument("-l", "-t", action="store_true", help="nothing: names and times are always printed")
    getevent.add_argument(
        "device", nargs="*", help="event0 (pointer), event1 (keyboard), event2 (touch) [all]"
    )
    return parser


def _media(options: argparse.Namespace) -> int:
    """The commands that block, as the HAL and EventHub do."""
    from anbox_tw.guest import audio, input

    socket = os.path.join(options.dev, "anbox_audio")
    try:
        if options.command == "play":
            audio.play(socket, options.file)
        elif options.command == "record":
            audio.record(socket, options.file, options.seconds)
        else:
            paths = [os.path.basename(device) for device in options.device]
            if options.print:
                input.describe_devices(options.dev, paths)
            else:
                input.get_events(options.dev, paths, options.count)
    except AnboxError as error:
        print(f"anbox guest: {error}", file=sys.stderr)  # noqa: T201
        return int(error.exit_code)
    except OSError as error:
        print(f"anbox guest: {error.filename or ''}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return int(ExitCode.FAILED)
    except KeyboardInterrupt:
        return 130
    return 0


def _serve(dev: str, root: str) -> int:
    """Run the guest until a signal ends it; returns the exit code."""
    from twisted.internet import reactor as the_reactor
    from twisted.logger import globalLogBeginner, textFileLogObserver

    from anbox_tw.guest.service import GuestService

    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    reactor: Any = the_reactor
    code = [int(ExitCode.OK)]
    stopping: list[bool] = []

    def stop() -> None:
        if reactor.running and not stopping:
            stopping.append(True)
            reactor.stop()

    service = GuestService(reactor, dev, root, on_reboot=lambda: reboot(stop))

    def start() -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, frame: reactor.callFromThread(stop))
        try:
            service.startService()
        except AnboxError as error:
            print(f"anbox guest: {error}", file=sys.stderr, flush=True)  # noqa: T201
            code[0] = int(error.exit_code)
            stop()

    reactor.callWhenRunning(start)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    return code[0]


def _clipboard(dev: str, text: str | None) -> int:
    from twisted.internet.task import react

    from anbox_tw.guest.control import clipboard

    wanted = sys.stdin.read() if text == "-" else text

    async def work(reactor: object) -> None:
        try:
            found = await clipboard(reactor, os.path.join(dev, "anbox_guest"), wanted)
        except AnboxError as error:
            print(f"anbox guest: {error}", file=sys.stderr)  # noqa: T201
            raise SystemExit(int(error.exit_code)) from None
        if wanted is None:
            print(found)  # noqa: T201

    react(work)
    return 0


def _am(dev: str, arguments: Sequence[str]) -> int:
    from twisted.internet.task import react

    from anbox_tw.guest.am import am

    async def work(reactor: object) -> None:
        raise SystemExit(int(await am(reactor, os.path.join(dev, "anbox_guest"), arguments)))

    react(work)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "clipboard":
        return _clipboard(options.dev, options.text)
    if options.command == "hal":
        from anbox_tw.guest import hal_command

        return hal_command.main(hal_command.pipe_path(options.dev), options.arguments)
    if options.command == "ril":
        from anbox_tw.guest import ril_command

        return ril_command.main(os.path.join(options.dev, "qemu_pipe"), options.arguments)
    if options.command == "am":
        return _am(options.dev, options.arguments)
    if options.command in ("play", "record", "getevent"):
        return _media(options)
    root = os.path.abspath(options.root)
    if options.services or (os.getpid() == 1 and not options.alone):
        # before the imports, which take a while: process 1 must not lose the signal that ends it
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        from anbox_tw.guest import services

        if services.fits(options.dev):
            return services.run(options.dev, root)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        # a container without namespaces lies deep in somebody's directories
        print(  # noqa: T201
            f"anbox guest: paths below {options.dev}/socket are too long for sockets: no init, no installd",
            file=sys.stderr,
        )
    if os.getpid() == 1:
        return run_as_init(lambda: _serve(options.dev, root))
    return _serve(options.dev, root)


if __name__ == "__main__":
    sys.exit(main())
