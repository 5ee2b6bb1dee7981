"""``am``: Android's activity manager command, as far as the guest has activities."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from anbox_tw.errors import AnboxError, ExitCode
from anbox_tw.guest.control import force_stop, start
from anbox_tw.rpc import RemoteError
from anbox_tw.rpc._pb import anbox_bridge_pb2 as pb

__all__ = ["am", "parse"]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line of ``am start`` and ``am force-stop`` (frameworks/base, ``Intent.parseCommandArgs``).

    Raises:
        SystemExit: it is no such command; the usage was printed.
    """
    parser = argparse.ArgumentParser(
        prog="am", description="Launch and stop applications.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    launch = commands.add_parser(
        "start", aliases=["start-activity"], help="launch an intent", allow_abbrev=False
    )
    launch.add_argument("-n", metavar="PACKAGE/ACTIVITY", dest="component", default="")
    launch.add_argument("-a", metavar="ACTION", dest="action", default="")
    launch.add_argument("-d", metavar="URI", dest="uri", default="")
    launch.add_argument("-t", metavar="TYPE", dest="type", default="")
    launch.add_argument("-c", metavar="CATEGORY", dest="categories", action="append", default=[])
    launch.add_argument("-p", metavar="PACKAGE", dest="package", default="")
    launch.add_argument("--stack", type=int, choices=(0, 1, 2), default=0)
    for flag in ("-W", "-S", "-D"):
        launch.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    launch.add_argument("target", nargs="?", default="", metavar="PACKAGE | PACKAGE/ACTIVITY | URI")
    stop = commands.add_parser("force-stop", help="end an application")
    stop.add_argument("package")
    options = parser.parse_args(arguments)
    if options.command != "force-stop":
        target = options.target
        if ":" in target:
            options.uri = options.uri or target
        elif "/" in target:
            options.component = options.component or target
        else:
            options.package = options.package or target
        package, slash, component = options.component.partition("/")
        if slash:
            options.package, options.component = package, component
    return options


async def am(reactor: Any, path: str, arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code.

    Args:
        reactor: connects.
        path: of the guest's socket.
        arguments: behind ``am``.

    Raises:
        SystemExit: wrong usage.
    """
    options = parse(arguments)
    try:
        if options.command == "force-stop":
            await force_stop(reactor, path, options.package)
            return ExitCode.OK
        intent = pb.Intent(categories=options.categories)
        shown = []
        for name, short in (
            ("action", "act"),
            ("uri", "dat"),
            ("type", "typ"),
            ("package", "pkg"),
            ("component", "cmp"),
        ):
            value = getattr(options, name)
            if value:
                setattr(intent, name, value)
                shown.append(f"{short}={value}")
        # Android's own words, which scripts look for.
        print(f"Starting: Intent {{ {' '.join(shown)} }}")  # noqa: T201
        await start(reactor, path, intent, options.stack)
    except RemoteError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return ExitCode.FAILED
    except AnboxError as error:
        print(f"am: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return ExitCode.OK
