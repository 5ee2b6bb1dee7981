"""``twistd anbox-session``: the session manager of one instance."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from twisted.logger import Logger
from twisted.python import usage

from anbox_tw.container.imagestore.store import default_store, resolve_image
from anbox_tw.device import SENSORS
from anbox_tw.errors import ConfigError
from anbox_tw.interfaces import IClipboard
from anbox_tw.network import RuntimePaths, check_instance_name
from anbox_tw.network.systemd import notify
from anbox_tw.network.twistd import CommandOptions, CommandService
from anbox_tw.qemu.adb_server_address import AdbServerAddress
from anbox_tw.qemu.boot_properties import check_property
from anbox_tw.qemu.camera_sources import parse_source
from anbox_tw.qemu.outward import Allowance
from anbox_tw.session.audio import DEFAULT_LATENCY_S, check_audio, check_microphone
from anbox_tw.session.hardware import DEFAULT_CAMERAS, HardwareSettings
from anbox_tw.session.host_clipboard import CLIPBOARDS, make_clipboard
from anbox_tw.session.launchers import applications_directory
from anbox_tw.session.manager import manager_connector
from anbox_tw.session.service import DEFAULT_PROPERTIES, SessionService, SessionSettings

__all__ = ["Options", "makeService"]

_log = Logger()

LOG_LEVELS = ("trace", "debug", "info", "warning", "error", "fatal")
PLATFORMS = ("sdl", "null")

MAX_PIXELS = 16384
"""Of a side of the display; what the device model takes."""

LATER = "accepted as in the original; nothing here draws yet, so it changes nothing"


class Options(CommandOptions):
    """Command line, configuration file and environment of a session."""

    synopsis = "[options]"
    longdesc = (
        "Serves the sockets of one Android container and has the container manager run it: /dev/qemu_pipe (adb and the "
        "emulator's services) and /dev/anbox_bridge in the guest, and a control socket for the anbox command. The "
        "device shows in 'adb devices' as soon as an adb server runs on this host; the session starts none itself. It "
        "survives the loss of the manager and of the container: it says so, and asks for the container again.\n\n"
        "Environment: XDG_RUNTIME_DIR; ADB_SERVER_SOCKET, ANDROID_ADB_SERVER_ADDRESS and ANDROID_ADB_SERVER_PORT, as adb "
        "reads them; ANBOX_FORCE_SERVER_SIDE_DECORATION=true, ANBOX_FORCE_SOFTWARE_RENDERING=true and "
        "ANBOX_ENABLE_TOUCH_EMULATION=false, as the flags of these names; NOTIFY_SOCKET, for systemd's Type=notify. "
        "ANBOX_PLATFORM=null is as --single-window. ANBOX_LOG_LEVEL is checked and changes nothing yet. XDG_DATA_HOME and "
        "ANBOX_NO_DESKTOP_SUBDIR say where launchers go; WAYLAND_DISPLAY and DISPLAY, where the clipboard is."
    )

    optParameters = [
        ["instance", "i", "default", "Name of the instance."],
        ["runtime-dir", None, "", "Where sockets live. [default: $XDG_RUNTIME_DIR, or a private directory]"],
        [
            "container-manager",
            "m",
            "",
            "The container manager: path of its socket, or a client endpoint such as unix:/run/anbox-container.socket. "
            "[default: that of this user, else that of the system]",
        ],
        [
            "adb-server",
            None,
            "",
            "The adb server: PORT, HOST:PORT, localfilesystem:PATH or localabstract:NAME. [default: as adb does]",
        ],
        [
            "console-port",
            None,
            "",
            "Even port of the pair to take; adb gets the next one. [default: the first free one from 5554]",
        ],
        [
            "console-token",
            None,
            "",
            "The file with the emulator console's token; an empty file asks nobody. "
            "[default: .emulator_console_auth_token in the home directory]",
        ],
        ["backend", None, "", "How the container is run: process or lxc. [default: the manager's]"],
        ["rootfs", None, "", "What the container sees as /: 'host' or a directory. [default: the manager's]"],
        [
            "image",
            None,
            "",
            "An Android image instead of --rootfs: the name of one that 'anbox image' keeps, or a file (squashfs or ext4).",
        ],
        ["data-path", None, "", "Where the instance keeps its data. [default: the manager's]"],
        [
            "disabled-sensors",
            None,
            "",
            "Sensors the guest shall not have, by comma.",
        ],
        ["window-size", None, "1024,768", "Width and height of the display, in pixels."],
        [
            "clipboard",
            None,
            "auto",
            "Which clipboard the guest shares: that of the desktop (auto, or by its tool: wayland, xclip, xsel), or one of "
            "the session's own (private).",
        ],
        [
            "audio",
            None,
            "auto",
            "Where the guest's sound goes: pulse or pipewire (through their pacat or pw-cat), wav:PATH, null, or auto, which "
            "takes the sound server that is there when the guest plays, else null.",
        ],
        [
            "microphone",
            None,
            "silence",
            "What the guest records: silence, tone, wav:PATH, raw:PATH (8000 Hz, 16 bits, mono), none (refused), or the "
            "host's own microphone by pulse or pipewire.",
        ],
        [
            "audio-latency",
            None,
            f"{DEFAULT_LATENCY_S * 1000:g}",
            "Milliseconds of sound between the guest and the loudspeaker, as far as it is ours: 20 to 2000.",
        ],
        [
            "renderer",
            None,
            "",
            "What draws for the guest's opengles: a client endpoint such as unix:/run/renderer.sock. [default: nothing]",
        ],
        ["boot-icon", None, "", "A picture for the guest's boot animation."],
        ["dbus", None, "session", "The bus to be on as org.anbox: session, system, or none."],
        ["desktop_file_hint", None, "", "For desktop shells; " + LATER + "."],
    ]

    optFlags = [
        [
            "standalone",
            None,
            "No container manager: the guest is brought by somebody else. Needs --experimental.",
        ],
        ["experimental", None, "Allow what is experimental."],
        ["no-console", None, "Refuse connections to the console port."],
        ["server-side-decoration", None, "The guest draws no window frames (ro.anbox.no_decorations=1)."],
        ["rootless", None, "Talk to this user's own container manager, never to the system's."],
        [
            "single-window",
            None,
            "Whole Android in one window: the application manager is launched when it has booted.",
        ],
        [
            "launchers",
            None,
            "Make a launcher in the desktop's menu for each application of the guest.",
        ],
        ["no-launchers", None, "Make none, whatever the configuration file says; the default."],
        ["debug-pipes", None, "Serve the test pipes zero and pingpong."],
        ["use-system-dbus", None, "As --dbus system."],
        ["software-rendering", None, "Render without a GPU; " + LATER + "."],
        ["no-touch-emulation", None, "The mouse is a mouse; otherwise it is a finger."],
    ]

    compData = usage.Completions(
        optActions={
            "config": usage.CompleteFiles("*.toml"),
            "runtime-dir": usage.CompleteDirs(),
            "data-path": usage.CompleteDirs(),
            "image": usage.CompleteFiles(),
            "boot-icon": usage.CompleteFiles(),
            "backend": usage.CompleteList(["process", "lxc"]),
        }
    )

    environment: Mapping[str, str] = os.environ

    def __init__(self) -> None:
        super().__init__()
        self.boot_properties: dict[str, str] = dict(DEFAULT_PROPERTIES)
        self.extra_properties: list[str] = []
        self.cameras: dict[str, str] = dict(DEFAULT_CAMERAS)
        self.allowed: list[Allowance] = []

    def opt_boot_property(self, text: str) -> None:
        """NAME=VALUE that the guest reads early in its boot; may be given more than once."""
        name, value = _pair(text)
        try:
            check_property(name, value)
        except ConfigError as error:
            raise usage.UsageError(f"--boot-property: {error}") from None
        self.boot_properties[name] = value

    def opt_property(self, text: str) -> None:
        """NAME=VALUE for the guest's default.prop; may be given more than once."""
        name, value = _pair(text)
        self.extra_properties.append(f"{name}={value}")

    def opt_camera(self, text: str) -> None:
        """[back=|front=]SOURCE: test-pattern, none, image:PATH or video:PATH; back where neither is said.

        [default: back=test-pattern, front=none]
        """
        direction, equals, source = text.partition("=")
        if not equals or direction not in DEFAULT_CAMERAS:
            direction, source = "back", text
        try:
            kind, path = parse_source(source)
        except ConfigError as error:
            raise usage.UsageError(f"--camera: {error}") from None
        self.cameras[direction] = f"{kind}:{path}" if path else kind

    def opt_allow_outward(self, text: str) -> None:
        """What the guest may connect to on the host: tcp:PORT, tcp:HOST:PORT, unix:PATH; may be given more than once.

        [default: nothing]
        """
        try:
            self.allowed.append(Allowance.parse(text))
        except ConfigError as error:
            raise usage.UsageError(f"--allow-outward: {error}") from None

    def parseArgs(self, *args: str) -> None:
        """No arguments."""
        if args:
            raise usage.UsageError(f"there are no arguments, but here is {args[0]!r}")

    def postOptions(self) -> None:
        """Check everything that can be checked without touching the host.

        Raises:
            UsageError: an option cannot be used.
            ConfigError: likewise.
        """
        environment = self.environment
        if environment.get("ANBOX_FORCE_SERVER_SIDE_DECORATION") == "true":
            self["server-side-decoration"] = 1
        if environment.get("ANBOX_FORCE_SOFTWARE_RENDERING") == "true":
            self["software-rendering"] = 1
        if environment.get("ANBOX_ENABLE_TOUCH_EMULATION") == "false":
            self["no-touch-emulation"] = 1
        self._warn_about("ANBOX_LOG_LEVEL", LOG_LEVELS)
        self._warn_about("ANBOX_PLATFORM", PLATFORMS)
        if self["standalone"] and not self["experimental"]:
            # The original's words.
            raise usage.UsageError("Experimental features selected, but --experimental flag not set")
        if self["backend"] not in ("", "process", "lxc"):
            raise usage.UsageError(f"--backend {self['backend']}: there is process, and there is lxc")
        if self["image"] and self["rootfs"]:
            raise usage.UsageError("--image and --rootfs exclude each other")
        for name in ("rootfs", "data-path", "boot-icon", "console-token"):
            if self[name] and self[name] != "host":
                self[name] = os.path.abspath(self[name])
        self._window_size()
        if self["use-system-dbus"]:
            self["dbus"] = "system"
        if self["dbus"] not in ("session", "system", "none"):
            raise usage.UsageError(f"--dbus {self['dbus']}: there is session, system, and none")
        if self["no-launchers"]:
            self["launchers"] = 0
        if self["clipboard"] not in ("auto", "private", *CLIPBOARDS):
            raise usage.UsageError(
                f"--clipboard {self['clipboard']}: there is auto, private, {', '.join(CLIPBOARDS)}"
            )
        if environment.get("ANBOX_PLATFORM") == "null":
            # Without a display server there is one window at most.
            self["single-window"] = 1
        self._audio_latency()
        self["audio"] = check_audio(self["audio"])
        self["microphone"] = check_microphone(self["microphone"])
        unknown = {name for name in self["disabled-sensors"].split(",") if name} - set(SENSORS)
        if unknown:
            _log.warn("--disabled-sensors: no sensor is called {names}", names=", ".join(sorted(unknown)))
        self._console_port()
        check_instance_name(self["instance"])
        self._adb_server()

    @cached_property
    def settings(self) -> SessionSettings:
        """What the options mean here and now: looks for the runtime directory.

        Raises:
            ConfigError: there is no such runtime directory, or its name is too long.
            PermissionRefused: it cannot be written.
        """
        kind, image = "image", ""
        if self["image"]:
            kind, image = resolve_image(self["image"], default_store(self.environment))
        paths = RuntimePaths.find(self["instance"], self["runtime-dir"] or None, environ=self.environment)
        properties = list(self.extra_properties)
        if self["server-side-decoration"]:
            properties.append("ro.anbox.no_decorations=1")
        return SessionSettings(
            paths=paths,
            adb_server=self._adb_server(),
            console_port=self._console_port(),
            console=not self["no-console"],
            console_token=self["console-token"],
            backend=self["backend"],
            rootfs=image if kind == "rootfs" else self["rootfs"],
            image=image if kind == "image" else "",
            data_path=self["data-path"],
            boot_properties=self.boot_properties,
            extra_properties=tuple(properties),
            standalone=bool(self["standalone"]),
            single_window=bool(self["single-window"]),
            disabled_sensors=tuple(name for name in self["disabled-sensors"].split(",") if name),
            window_size=self._window_size(),
            state_path=f"{self['data-path'] or paths.data_path(environ=self.environment)}/session",
            dbus="" if self["dbus"] == "none" else self["dbus"],
            launchers=applications_directory(self.environment) if self["launchers"] else "",
            touch_emulation=not self["no-touch-emulation"],
            audio=self["audio"],
            microphone=self["microphone"],
            audio_latency=self._audio_latency(),
            hardware=HardwareSettings(
                cameras=self.cameras,
                renderer=self["renderer"],
                boot_icon=self["boot-icon"],
                allowed=tuple(self.allowed),
                debug_pipes=bool(self["debug-pipes"]),
            ),
        )

    def clipboard(self, reactor: Any) -> IClipboard:
        """The clipboard that the guest shares."""
        return make_clipboard(reactor, self.environment, self["clipboard"])

    @property
    def manager(self) -> str:
        """Where the container manager is; empty for the usual place."""
        if self["rootless"] and not self["container-manager"]:
            return self.settings.paths.rootless_manager_socket
        return str(self["container-manager"])

    def _adb_server(self) -> AdbServerAddress:
        if self["adb-server"]:
            return AdbServerAddress.parse(self["adb-server"])
        return AdbServerAddress.from_environment(self.environment)

    def _warn_about(self, variable: str, values: Sequence[str]) -> None:
        value = self.environment.get(variable)
        if value and value not in values:
            _log.warn(
                "{variable}={value} is none of {values}",
                variable=variable,
                value=value,
                values=", ".join(values),
            )

    def _window_size(self) -> tuple[int, int]:
        width, _, height = self["window-size"].partition(",")
        if not all(
            text.isascii() and text.isdigit() and 0 < int(text) <= MAX_PIXELS for text in (width, height)
        ):
            raise usage.UsageError(
                f"--window-size {self['window-size']}: write it as 1024,768, each 1 to {MAX_PIXELS}"
            )
        return int(width), int(height)

    def _audio_latency(self) -> float:
        text = self["audio-latency"]
        if not text.isascii() or not text.isdigit() or not 20 <= int(text) <= 2000:
            raise usage.UsageError(f"--audio-latency {text}: write milliseconds, 20 to 2000")
        return int(text) / 1000

    def _console_port(self) -> int | None:
        text = self["console-port"]
        if not text:
            return None
        if not text.isdecimal() or int(text) % 2 or not 1024 <= int(text) <= 65534:
            raise usage.UsageError(f"--console-port {text}: it must be even, 1024 to 65534")
        return int(text)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise usage.UsageError(f"{text!r} is not NAME=VALUE")
    return name, value


class _Main(CommandService):
    """The session as a program: tells systemd how far it is, and ends when a caller asks for it."""

    def __init__(self, options: Options, reactor: Any) -> None:
        super().__init__("anbox-session", options, reactor)
        self._options = options
        self._twisted_reactor = reactor

    def prepare(self) -> None:
        reactor, settings = self._twisted_reactor, self._options.settings
        connect = manager_connector(reactor, self._options.manager, settings.paths)
        session = SessionService(
            reactor,
            settings,
            connect,
            clipboard=self._options.clipboard(reactor),
            stop=lambda reason: reactor.stop(),
        )
        session.observe(_tell_systemd)
        session.setServiceParent(self)


def _tell_systemd(kind: str, name: str, detail: str) -> None:
    if kind in ("level", "phase"):
        notify(f"STATUS={kind} {name}{f': {detail}' if detail else ''}".replace("\n", " "))


def makeService(options: Options) -> CommandService:
    """The services of one session, for twistd.

    Nothing is touched before the start; what is wrong then is told on standard error, with its cure and
    the exit code of its kind (`anbox_tw.errors.ExitCode`).
    """
    from twisted.internet import reactor

    return _Main(options, reactor)
