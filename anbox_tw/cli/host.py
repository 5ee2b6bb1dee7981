"""``anbox system-info`` and ``anbox check-features``: the host, as the original's commands of these names tell it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from anbox_tw._version import __version__
from anbox_tw.cli._session import json_option, print_json
from anbox_tw.errors import HostLacks

__all__ = ["check_features", "missing_features", "system_info", "system_information"]

X86 = ("x86_64", "i386", "i486", "i586", "i686")

REQUIRED = ("sse4_1", "sse4_2", "ssse3")
"""Of an x86 processor, by their names in /proc/cpuinfo: Android's x86 ABI is compiled for them."""

GRAPHICS_LIMIT_S = 20.0

# In a process of its own: a driver may write to the terminal, hang or crash.
GRAPHICS = r"""
import ctypes, json
egl = ctypes.CDLL("libEGL.so.1"); gles = ctypes.CDLL("libGLESv2.so.2")
for name in ("eglGetDisplay", "eglCreateContext", "eglCreatePbufferSurface"):
    getattr(egl, name).restype = ctypes.c_void_p
egl.eglGetDisplay.argtypes = [ctypes.c_void_p]
egl.eglQueryString.restype = gles.glGetString.restype = ctypes.c_char_p
egl.eglQueryString.argtypes = [ctypes.c_void_p, ctypes.c_int]
def text(value): return value.decode(errors="replace") if value else None
display = ctypes.c_void_p(egl.eglGetDisplay(None))
if not egl.eglInitialize(display, None, None): raise SystemExit("EGL has no display")
found = {"egl": {"vendor": text(egl.eglQueryString(display, 0x3053)), "version": text(egl.eglQueryString(display, 0x3054)),
                 "extensions": (text(egl.eglQueryString(display, 0x3055)) or "").split()}, "gles2": None}
ints = lambda *values: (ctypes.c_int * len(values))(*values)
config, count = ctypes.c_void_p(), ctypes.c_int()
egl.eglBindAPI(0x30A0)
if egl.eglChooseConfig(display, ints(0x3033, 1, 0x3040, 4, 0x3038), ctypes.byref(config), 1, ctypes.byref(count)) and count.value:
    context = ctypes.c_void_p(egl.eglCreateContext(display, config, None, ints(0x3098, 2, 0x3038)))
    surface = ctypes.c_void_p(egl.eglCreatePbufferSurface(display, config, ints(0x3057, 16, 0x3056, 16, 0x3038)))
    if egl.eglMakeCurrent(display, surface, surface, context):
        found["gles2"] = {name: text(gles.glGetString(number)) for name, number in
                          (("vendor", 0x1F00), ("renderer", 0x1F01), ("version", 0x1F02))}
        found["gles2"]["extensions"] = (text(gles.glGetString(0x1F03)) or "").split()
print("\n" + json.dumps(found))
"""


@click.command("system-info")
@click.option("--no-graphics", is_flag=True, help="Do not ask EGL, which loads the host's graphics driver.")
@json_option
def system_info(no_graphics: bool, as_json: bool) -> None:
    """Print what matters of this host in YAML: processor, system, kernel, graphics."""
    found = system_information(graphics=not no_graphics)
    if as_json:
        print_json(found)
        return
    for line in as_yaml(found):
        click.echo(line)


@click.command("check-features")
@json_option
def check_features(as_json: bool) -> None:
    """Check that this computer's processor can run Android's programs.

    The exit code is 6 when it lacks something. 'anbox doctor' checks everything else.
    """
    processor = read_processor()
    missing = missing_features(processor)
    if as_json:
        print_json(
            {"arch": processor["arch"], "required": required_of(processor["arch"]), "missing": missing}
        )
    if missing:
        raise HostLacks(
            f"the processor ({processor['brand']}) lacks {', '.join(missing)}",
            "run anbox on a newer processor; programs that do not use these instructions run all the same",
        )
    if not as_json:
        click.echo("Your computer does meet all requirements to run Anbox")


def required_of(arch: str) -> list[str]:
    """The features that a processor of this kind must have."""
    return list(REQUIRED) if arch in X86 else []


def missing_features(processor: dict[str, Any]) -> list[str]:
    """Which of the required features a processor lacks."""
    return [name for name in required_of(processor["arch"]) if name not in processor["features"]]


def read_processor(path: str = "/proc/cpuinfo", machine: str | None = None) -> dict[str, Any]:
    """``arch``, ``brand`` and ``features`` (as the kernel names them) of the first processor."""
    found: dict[str, Any] = {"arch": machine or platform.machine(), "brand": "unknown", "features": []}
    for line in Path(path).read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if name in ("model name", "Processor", "Hardware") and found["brand"] == "unknown":
            found["brand"] = value
        elif name in ("flags", "Features") and not found["features"]:
            found["features"] = sorted(value.split())
    return found


def system_information(*, graphics: bool = True) -> dict[str, Any]:
    """Everything that ``anbox system-info`` tells."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    filesystems = Path("/proc/filesystems").read_text().split()
    snap = os.environ.get("SNAP_REVISION")
    return {
        "version": __version__,
        "snap-revision": snap,
        "cpu": read_processor(),
        "os": {
            "name": release.get("PRETTY_NAME") or release.get("NAME"),
            "version": release.get("VERSION"),
            "snap-based": snap is not None,
        },
        "kernel": {
            "version": Path("/proc/version").read_text().strip(),
            "binder": os.path.exists("/dev/binder"),
            "binderfs": "binder" in filesystems,
            "ashmem": os.path.exists("/dev/ashmem"),
            # Android 10 and later do without ashmem where this is there.
            "memfd": hasattr(os, "memfd_create"),
        },
        "graphics": _graphics() if graphics else None,
    }


def _graphics() -> dict[str, Any]:
    nothing: dict[str, Any] = {"egl": None, "gles2": None}
    environment = dict(os.environ)
    if not environment.get("DISPLAY") and not environment.get("WAYLAND_DISPLAY"):
        # Mesa's way to draw without a display.
        environment.setdefault("EGL_PLATFORM", "surfaceless")
    try:
        done = subprocess.run(
            [sys.executable, "-c", GRAPHICS],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
            timeout=GRAPHICS_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {**nothing, "problem": str(error)}
    if done.returncode:
        return {**nothing, "problem": (done.stderr.strip().splitlines() or ["it crashed"])[-1]}
    try:
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {**nothing, "problem": "it says nothing that can be read"}
    return told


def as_yaml(value: Any, indent: int = 0) -> Iterator[str]:
    """Lines of YAML: mappings, lists and plain values, all that there is here."""
    space = "  " * indent
    for name, item in value.items():
        if isinstance(item, dict) and item:
            yield f"{space}{name}:"
            yield from as_yaml(item, indent + 1)
        elif isinstance(item, list) and item:
            yield f"{space}{name}:"
            yield from (f"{space}  - {_scalar(each)}" for each in item)
        else:
            yield f"{space}{name}: {_scalar(item)}"


def _scalar(value: Any) -> str:
    # JSON is YAML, and its strings need no rules of when a plain one would do.
    return json.dumps(value, ensure_ascii=False)
