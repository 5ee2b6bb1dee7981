"""``hal``: the guest's hardware from a shell, through the same calls as Android's HALs. Output is a JSON object a line."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from anbox_tw.errors import AnboxError, ExitCode
from anbox_tw.guest import hal

__all__ = ["main", "parse"]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line behind ``hal``.

    Raises:
        SystemExit: it is none; the usage was printed.
    """
    parser = argparse.ArgumentParser(prog="hal", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    sensors = commands.add_parser("sensors", help="report what sensors measure; without names, list them")
    sensors.add_argument("--delay", type=int, default=200, metavar="MS", help="between reports [%(default)s]")
    _count(sensors, "reports")
    sensors.add_argument("name", nargs="*")
    camera = commands.add_parser("camera", help="list cameras, or take frames")
    actions = camera.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list the cameras")
    frame = actions.add_parser("frame", help="write the video of frames to a file, '-' is standard output")
    frame.add_argument("--camera", metavar="NAME", help="[the first one]")
    frame.add_argument("--size", type=_size, default=(640, 480), metavar="WxH", help="[640x480]")
    frame.add_argument("--format", default="NV21", choices=("YU12", "YV12", "NV12", "NV21"))
    frame.add_argument("--preview", action="store_true", help="write the RGB32 preview instead")
    frame.add_argument("-c", "--count", type=int, default=1, metavar="N", help="how many [%(default)s]")
    frame.add_argument("file")
    gps = commands.add_parser("gps", help="print the fixes that the receiver reports")
    _count(gps, "fixes")
    finger = commands.add_parser("fingerprint", help="print who touches the sensor")
    _count(finger, "touches and removals")
    light = commands.add_parser("light", help="set a light")
    light.add_argument("name", choices=("lcd_backlight", "keyboard_backlight", "button_backlight"))
    light.add_argument("brightness", type=int, metavar="0..255")
    screen = commands.add_parser("screen", help="wake the screen, or put it to standby")
    screen.add_argument("state", choices=("wake", "standby"))
    return parser.parse_args(arguments)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def _count(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "-c", "--count", type=int, default=0, metavar="N", help=f"end after so many {what} [never]"
    )


def main(path: str, arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code.

    Args:
        path: of the pipe's socket.
        arguments: behind ``hal``.
    """
    options = parse(arguments)
    try:
        _RUN[options.command](path, options)
    except AnboxError as error:
        print(f"hal: {error}", file=sys.stderr)  # noqa: T201
        return int(error.exit_code)
    except OSError as error:
        print(f"hal: {error.filename or ''}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return int(ExitCode.FAILED)
    except KeyboardInterrupt:
        return 130
    return 0


def _tell(**values: Any) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201


def _sensors(path: str, options: argparse.Namespace) -> None:
    if not options.name:
        for name in hal.list_sensors(path):
            _tell(name=name)
        return
    device = hal.SensorsDevice(path)
    device.set_delay(options.delay)
    for name in options.name:
        device.activate(name)
    for number in itertools.count(1):
        moment, values = device.poll()
        _tell(time_ns=moment, **{name: list(numbers) for name, numbers in values.items()})
        if number == options.count:
            break
    device.close()


def _camera(path: str, options: argparse.Namespace) -> None:
    cameras = hal.list_cameras(path)
    if options.action == "list":
        for camera in cameras:
            _tell(
                name=camera.name,
                direction=camera.direction,
                sizes=[f"{width}x{height}" for width, height in camera.sizes],
            )
        return
    name = options.camera or (cameras[0].name if cameras else "none")
    device = hal.CameraDevice(path, name)
    width, height = options.size
    device.start(width, height, options.format)
    with open(
        sys.stdout.fileno() if options.file == "-" else options.file, "wb", closefd=options.file != "-"
    ) as file:
        for _number in range(options.count):
            video, preview = device.frame(video=not options.preview, preview=options.preview)
            file.write(preview if options.preview else video)
    device.stop()
    device.close()


def _gps(path: str, options: argparse.Namespace) -> None:
    for number, fix in enumerate(hal.GpsReader(path).fixes(), 1):
        _tell(**hal.as_dict(fix))
        if number == options.count:
            break


def _fingerprint(path: str, options: argparse.Namespace) -> None:
    listener = hal.Fingerprints(path)
    for number in itertools.count(1):
        _tell(finger=listener.next(timeout=86_400))
        if number == options.count:
            break


def _light(path: str, options: argparse.Namespace) -> None:
    hal.set_light(path, options.name, options.brightness)


def _screen(path: str, options: argparse.Namespace) -> None:
    hal.set_screen(path, options.state == "wake")


_RUN = {
    "sensors": _sensors,
    "camera": _camera,
    "gps": _gps,
    "fingerprint": _fingerprint,
    "light": _light,
    "screen": _screen,
}


def pipe_path(dev: str) -> str:
    """Of the pipe's socket."""
    return os.path.join(dev, "qemu_pipe")
