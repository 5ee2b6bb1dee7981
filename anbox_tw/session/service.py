"""The session: serves the guest's sockets and the control socket, and has the manager run the container."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, ensureDeferred, fail, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.console import Console
from anbox_tw.device import Device
from anbox_tw.device.injector import Injector
from anbox_tw.interfaces import IAudioSink, IAudioSource, IClipboard, IPipeService
from anbox_tw.network import PortAllocator, RuntimePaths, UnixListener
from anbox_tw.qemu.adb import AdbPipeService
from anbox_tw.qemu.adb_server_address import AdbServerAddress
from anbox_tw.qemu.adb_server_link import AdbServerLink
from anbox_tw.qemu.boot_properties import BootPropertiesService
from anbox_tw.qemu.pipe import PipeConnectionCreator
from anbox_tw.qemu.registry import PipeServiceRegistry
from anbox_tw.session._state import Input, Levels, SessionState
from anbox_tw.session.audio import DEFAULT_LATENCY_S, AudioServer, make_sink, make_source
from anbox_tw.session.bridge import Bridge
from anbox_tw.session.clipboard import Clipboard
from anbox_tw.session.console_host import SessionConsole
from anbox_tw.session.container import ContainerRequest, ContainerSupervisor, ManagerConnection
from anbox_tw.session.control import SessionControl
from anbox_tw.session.dbus.service import DBusService
from anbox_tw.session.desktop import DesktopFiles
from anbox_tw.session.desktop_verbs import register_bridge_verbs
from anbox_tw.session.errors import NotReadyYet
from anbox_tw.session.forwards import Forward, Forwards, GuestSockets
from anbox_tw.session.forwards.by_adb import AdbWay
from anbox_tw.session.forwards.store import ForwardStore
from anbox_tw.session.hardware import Hardware, HardwareSettings
from anbox_tw.session.input import InputServer, register_input_verbs
from anbox_tw.session.launchers import launchers_of
from anbox_tw.session.phone_link import NUMBER_PREFIX, PhoneLink
from anbox_tw.session.stats import register_stats
from anbox_tw.session.verbs import DeviceVerbs
from anbox_tw.session.windows import Windows

__all__ = ["SessionService", "SessionSettings"]

DEFAULT_PROPERTIES = {"ro.sf.lcd_density": "160"}
"""What the original tells every guest: windows are measured at 160 dpi."""

APP_MANAGER = ("org.anbox.appmgr", "org.anbox.appmgr.AppViewActivity")
"""Package and activity of the original's view of all applications."""

APP_MANAGER_DELAY_S = 0.05
"""Between boot and launch of it, as in the original."""

INPUT_TARGET = "dev/input"
"""The whole directory is bound: Android's EventHub watches it, and so sees a session that was restarted."""

FUSE = "/dev/fuse"
"""Android's sdcard daemon mounts with it."""


@attrs.frozen
class SessionSettings:
    """What a session can be told; see ``twistd anbox-session --help`` for the same in words.

    Attributes:
        paths: of the instance.
        adb_server: where the host's ADB server listens, or will.
        console_port: the even port to take; ``None`` takes the first free pair from 5554.
        backend: ``process``, ``lxc``, or empty for the manager's default.
        rootfs: a directory, ``host``, or empty for the manager's default.
        image: an Android image, or empty.
        data_path: or empty for the manager's default.
        console: whether the emulator console is served.
        console_token: the file with its secret; ``.emulator_console_auth_token`` in the home directory by default.
        boot_properties: for the guest's ``qemud:boot-properties``.
        extra_properties: ``name=value`` for the guest's default.prop, beside our own.
        devices: device paths the container gets, with permission bits.
        environment: for the guest's init.
        standalone: no container manager: the guest is brought by somebody else.
        single_window: whole Android is one window, so its application manager is launched after the boot.
        disabled_sensors: names of sensors that the device does not have.
        window_size: width and height of the display, pixels.
        hardware: how the device is equipped.
        state_path: directory in which the session keeps what it knows of the guest's applications; empty keeps
            nothing.
        launchers: directory for the applications' desktop launchers; empty makes none.
        dbus: ``session`` or ``system`` bus; empty for none.
        touch_emulation: whether the mouse is a finger.
        audio: where the guest's sound goes: ``auto``, ``pulse``, ``pipewire``, ``wav:PATH`` or ``null``.
        microphone: what it records: ``silence``, ``tone``, ``wav:PATH``, ``raw:PATH``, ``pulse``, ``pipewire`` or
            ``none``.
        audio_latency: seconds of sound that may wait between the guest and the loudspeaker.
    """

    paths: RuntimePaths
    adb_server: AdbServerAddress = attrs.field(factory=AdbServerAddress)
    console_port: int | None = None
    console: bool = True
    console_token: str = ""
    backend: str = ""
    rootfs: str = ""
    image: str = ""
    data_path: str = ""
    boot_properties: Mapping[str, str] = attrs.field(factory=lambda: dict(DEFAULT_PROPERTIES))
    extra_properties: tuple[str, ...] = ()
    devices: tuple[tuple[str, int], ...] = ((FUSE, 0o666),)
    environment: tuple[tuple[str, str], ...] = ()
    standalone: bool = False
    single_window: bool = False
    disabled_sensors: tuple[str, ...] = ()
    window_size: tuple[int, int] = (1024, 768)
    hardware: HardwareSettings = attrs.field(factory=HardwareSettings)
    state_path: str = ""
    launchers: str = ""
    dbus: str = ""
    touch_emulation: bool = True
    audio: str = "auto"
    microphone: str = "silence"
    audio_latency: float = DEFAULT_LATENCY_S


class SessionService(Service):
    """One session.

    Everything that later features add hangs on its parts: pipe services join ``registry``, a desktop replaces
    ``clipboard``, listeners of what happens call ``observe``.

    Args:
        reactor: listens, connects and tells the time.
        settings: what to run.
        connect_manager: reaches the container manager.
        ports: where the ADB ports come from.
        clipboard: shared with the guest.
        audio_sink: where the guest's sound goes, instead of what the settings say.
        audio_source: what the guest records, likewise.
        device: the model of its hardware; made after the settings by default.
        stop: called with a reason when a caller on the control socket wants the session to end; by default that stops
            this service.

    Attributes:
        console: the emulator console, or None.
        phone_link: to the phones of other sessions, or None.
        device: the model of its hardware.
        verbs: what the control socket's ``device`` call knows.
        hardware: the pipe services that show the device to the guest, and what plays on it.
        registry: the pipe services.
        state: phase and levels.
        bridge: to the guest's Android side.
        desktop: what is kept for the desktop, the applications above all.
        windows: the guest's tasks.
        injector: plays gestures on the device's input.
        input: what the guest has in ``/dev/input``.
        audio: what it plays and records.
        dbus: the session on a bus, or None.
        adb: the ADB pipe service.
        adb_link: to the host's ADB server.
        container_sockets: opens sockets in the container.
        forwards: from the host to the guest.
        end: ends the session, with a reason.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: SessionSettings,
        connect_manager: Callable[[], Deferred[ManagerConnection]],
        *,
        ports: PortAllocator | None = None,
        clipboard: IClipboard | None = None,
        audio_sink: IAudioSink | None = None,
        audio_source: IAudioSource | None = None,
        device: Device | None = None,
        stop: Callable[[str], object] | None = None,
    ) -> None:
        self._reactor = reactor
        self.settings = settings
        self.paths = settings.paths
        self.clipboard = clipboard or Clipboard()
        width, height = settings.window_size
        self.device = device or Device(disabled_sensors=settings.disabled_sensors, width=width, height=height)
        self.verbs = DeviceVerbs(self.device)
        self.injector = Injector(self.device, reactor, touch_emulation=settings.touch_emulation)
        self.input = InputServer(reactor, self.device, self.paths.input)
        register_input_verbs(self.verbs, self.injector, self.input)
        self.audio = AudioServer(
            reactor,
            self.paths.anbox_audio,
            audio_sink or make_sink(settings.audio, reactor, settings.audio_latency),
            audio_source or make_source(settings.microphone, reactor),
            label=f"anbox {self.paths.instance}",
        )
        self.started_at = 0.0
        self.container_info: dict[str, Any] = {}
        self._container_told = ("absent", "")
        self.state = SessionState(self._state_changed)
        self._levels = Levels()
        self._observers: list[Callable[[str, str, str], object]] = []
        self.adb_link = AdbServerLink(reactor, settings.adb_server)
        self.adb_link.observe(self._adb_changed)
        self.console = (
            Console(reactor, SessionConsole(self), settings.console_token) if settings.console else None
        )
        self.phone_link = (
            PhoneLink(reactor, self.device, self.console.token) if self.console is not None else None
        )
        self.adb = AdbPipeService(
            reactor,
            ports or PortAllocator(),
            self.adb_link,
            console=self.console,
            wanted=settings.console_port,
            reserved=self._ports_reserved,
        )
        self.registry = PipeServiceRegistry()
        self.hardware = Hardware(reactor, self.device, settings.hardware, self._tell)
        self.hardware.register(self.verbs)
        services: list[IPipeService] = [
            self.adb,
            BootPropertiesService(settings.boot_properties),
            *self.hardware.services,
        ]
        for service in services:
            self.registry.register(service)
        self.bridge = Bridge(reactor, self.clipboard)
        self.bridge.observe(self._bridge_changed)
        self.desktop = DesktopFiles(reactor, self.bridge, settings.state_path, launchers_of(settings))
        self.windows = Windows(
            self.bridge,
            self.desktop.label_of,
            lambda what, task, package: self._tell("task", str(task), f"{what} {package}"),
            single_window=settings.single_window,
        )
        register_bridge_verbs(self)
        register_stats(self)
        self.dbus = DBusService(reactor, self, settings.dbus) if settings.dbus else None
        self.container_sockets = GuestSockets(reactor, self.paths.instance)
        store = ForwardStore(f"{settings.state_path}/forwards.json") if settings.state_path else None
        self.forwards = Forwards(
            reactor,
            self.container_sockets,
            adb=AdbWay(reactor, lambda: self.adb.guest_port),
            shaper=self.hardware.shaper,
            store=store,
            tell=self._forward_changed,
        )
        self.end = stop or self._asked_to_stop
        self.control = SessionControl(self, self.clipboard, reactor, self.end)
        # The control socket comes first: it is how a second session of the instance is found out.
        self._listeners = [
            UnixListener(reactor, self.paths.control, self.control.factory, mode=0o600, name="control"),
            UnixListener(
                reactor, self.paths.qemu_pipe, PipeConnectionCreator(self.registry, reactor), name="qemu_pipe"
            ),
            UnixListener(reactor, self.paths.anbox_bridge, self.bridge, name="anbox_bridge"),
        ]
        self.request = ContainerRequest(
            instance=self.paths.instance,
            bind_mounts=(
                *((path, f"dev/{name}") for name, path in self.guest_sockets().items()),
                (self.paths.input, INPUT_TARGET),
            ),
            # What is in it is ours: a guest that could remove or replace a socket would have the session fail.
            read_only=(INPUT_TARGET,),
            devices=settings.devices,
            extra_properties=("ro.boot.fake_battery=1", *settings.extra_properties),
            backend=settings.backend,
            rootfs=settings.rootfs,
            image=settings.image,
            data_path=settings.data_path,
            environment=settings.environment,
        )
        self._supervisor = ContainerSupervisor(
            reactor, connect_manager, self.request, self.state, self._container_changed
        )
        self._stopping: Deferred[None] | None = None

    # -- what others ask --

    @property
    def failure(self) -> str:
        """Why there is no container, or an empty string."""
        return self._supervisor.failure

    def guest_sockets(self) -> dict[str, str]:
        """The sockets that the container gets in its ``/dev``: name to host path."""
        return {
            "qemu_pipe": self.paths.qemu_pipe,
            "anbox_bridge": self.paths.anbox_bridge,
            "anbox_audio": self.paths.anbox_audio,
        }

    def sockets(self) -> dict[str, str]:
        """All sockets of the session: name to host path."""
        return {**self.guest_sockets(), **self.input.sockets(), "control": self.paths.control}

    @property
    def listeners(self) -> list[UnixListener]:
        """Of the sockets that the guest and the tools connect to."""
        return list(self._listeners)

    def details(self) -> dict[str, Any]:
        """What the fixed fields of ``session_info`` do not say; JSON-able."""
        return {
            "adb": {
                **self.adb.describe(),
                "server": str(self.adb_link.address),
                "state": self.adb_link.state,
            },
            "bridge": {
                "connected": self.bridge.connected,
                "applications": len(self.bridge.applications),
                "known_applications": len(self.desktop),
                "windows": len(self.bridge.windows),
            },
            "dbus": {"name": self.dbus.name, "state": self.dbus.state} if self.dbus is not None else {},
            "pipe_services": list(self.registry),
            "audio": self.audio.describe(),
            "input": self.input.describe(),
            "forwards": len(self.forwards),
            "first_boot": self.state.first_boot,
            "starts": self.state.starts,
        }

    def observe(self, callback: Callable[[str, str, str], object]) -> Callable[[], None]:
        """Call ``callback(kind, name, detail)`` for each event of the control socket; returns what ends that."""
        self._observers.append(callback)
        return lambda: self._observers.remove(callback) if callback in self._observers else None

    def launch(self, *, stack: int = 0, **intent: Any) -> Deferred[None]:
        """Launch an intent in the guest, in the stack that the window mode allows.

        Args:
            stack: 0 default, 1 fullscreen, 2 freeform.
            intent: the other arguments of `Bridge.launch_application`.

        Returns:
            As `Bridge.launch_application`; fails with `NotReadyYet` before the guest has booted.
        """
        if not self.state.levels.booted:
            return fail(
                NotReadyYet(
                    f"the guest has not booted yet: waiting for {self.state.waiting_for}",
                    "anbox wait --for booted",
                )
            )
        return self.bridge.launch_application(stack=self.windows.stack_for(stack), **intent)

    # -- life --

    def startService(self) -> None:
        """Make the directories, listen, and ask for the container.

        Raises:
            AlreadyRunning: another session of this instance runs.
            PermissionRefused: a directory cannot be written.
            NetworkError: no port is free, or a socket cannot be made.
        """
        if self.running:
            return
        self.paths.make_directories()
        begun: list[Any] = []
        try:
            console = [self.console] if self.console is not None else []
            for part in (
                *self._listeners,
                self.input,
                self.audio,
                self.desktop,
                *console,
                self.adb,
                self.adb_link,
                self.forwards,
            ):
                part.startService()
                begun.append(part)
        except Exception:
            self._give_up(begun)
            raise
        if self.console is not None:
            self.console.ensure_token()
        if self.phone_link is not None:
            self.phone_link.start()
        super().startService()
        self.started_at = time.time()
        if self.dbus is not None:
            self.dbus.startService()
        if self.settings.standalone:
            # Whoever brings the guest has done the manager's part.
            for event in (Input.START, Input.CONNECTED, Input.STARTED):
                self.state.feed(event)
        else:
            self._supervisor.startService()

    def stopService(self) -> Deferred[None]:
        """End the container, then everything else; fires when all is closed."""
        if not self.running:
            return self._stopping or succeed(None)
        super().stopService()
        self._stopping = ensureDeferred(self._stop())
        return self._stopping

    def _give_up(self, begun: list[Any]) -> None:
        """Undo a start that failed. The process may end before the reactor's next turn, so the paths go at once."""
        for part in reversed(begun):
            for listener in [part] if isinstance(part, UnixListener) else getattr(part, "listeners", []):
                if listener.owns_path():
                    os.unlink(listener.path)
            ensureDeferred(_quietly(part)).addErrback(self._stop_failed)
        if begun:
            # The control socket was ours, so no other session uses them.
            self._remove_directories()

    def _remove_directories(self) -> None:
        """Remove the runtime directories that are empty and as we make them; others' and used ones stay."""
        paths = self.paths
        for path in (paths.sockets, paths.input, paths.base, f"{paths.root}/instances", paths.root):
            try:
                if stat.S_IMODE(os.lstat(path).st_mode) == (0o755 if path == paths.input else 0o700):
                    os.rmdir(path)
            except OSError:
                pass

    def _asked_to_stop(self, reason: str) -> None:
        self.stopService().addErrback(self._stop_failed)

    async def _stop(self) -> None:
        if self.dbus is not None:
            await self.dbus.stopService()
        # The guest first: it ends in order while its sockets still serve.
        if self.settings.standalone:
            for event in (Input.STOP, Input.GONE):
                self.state.feed(event)
        else:
            await self._supervisor.stopService()
        self.bridge.reset()
        await self.desktop.stopService()
        pipe_parts = [self.forwards.stopService(), self.adb.stopService(), self.adb_link.stopService()]
        if self.console is not None:
            pipe_parts.append(self.console.stopService())
        await gatherResults(pipe_parts, consumeErrors=True)
        parts = [*self._listeners, self.input, self.audio]
        await gatherResults([part.stopService() for part in parts], consumeErrors=True)
        # what guests' connections have left behind
        await self.hardware.stop()
        if self.phone_link is not None:
            await self.phone_link.stop()
        self._remove_directories()
        self._stopping = None

    def _stop_failed(self, failure: Failure) -> None:
        self._log.failure("Stopping a part failed", failure)

    # -- what the parts tell --

    def _ports_reserved(self, console_port: int) -> None:
        # The emulator's phone numbers end with the console's port.
        self.device.phone.update(number=f"{NUMBER_PREFIX}{console_port:04d}")
        if self.console is not None:
            self.console.listen6(console_port)

    def _state_changed(self, what: str) -> None:
        state = self.state
        if what == "phase":
            self._tell("phase", state.phase.value, state.detail)
        levels, self._levels = self._levels, state.levels
        for name in ("live", "ready", "booted"):
            was, now = levels.reached(name), self._levels.reached(name)
            if was != now:
                self._log.info(
                    "The session is {state} {name}", state="now" if now else "no longer", name=name
                )
                self._tell("level", name, "reached" if now else "lost")

    def _adb_changed(self, adb_state: str) -> None:
        self.state.adb_changed(adb_state)
        self._tell("adb", self.adb.serial, adb_state)

    def _bridge_changed(self, kind: str, value: Any) -> None:
        if kind == "boot_finished":
            self.state.boot_finished(bool(value))
            if self.settings.single_window:
                self._reactor.callLater(APP_MANAGER_DELAY_S, self._show_applications)
        self._tell("bridge", kind, "" if value is None else str(value))

    def _show_applications(self) -> None:
        package, component = APP_MANAGER
        launching = self.bridge.launch_application(package=package, component=component)
        launching.addErrback(
            lambda failure: self._log.warn("No view of applications: {why}", why=failure.value)
        )

    def _container_changed(self, info: dict[str, Any]) -> None:
        if info:
            self.container_info.update(info)
            if info.get("state") == "running" and "guest_sockets" in info:
                self.container_sockets.container_runs(str(info["guest_sockets"]))
            elif info.get("state", "running") != "running":
                self.container_sockets.container_gone()
        else:
            # The container is gone, and with it what its guest reported.
            self.container_info.clear()
            self.bridge.reset()
            self.container_sockets.container_gone()
        told = (info.get("state", "gone"), info.get("phase", "") or info.get("failure", ""))
        if told != self._container_told:
            self._container_told = told
            self._tell("container", *told)

    def _forward_changed(self, what: str, forward: Forward) -> None:
        self._tell("forward", str(forward.listen), f"{what}: {forward.target}")

    def _tell(self, kind: str, name: str, detail: str) -> None:
        self.control.tell(kind, name, detail)
        for observer in list(self._observers):
            try:
                observer(kind, name, detail)
            except Exception:
                self._log.failure("An observer failed")


async def _quietly(part: Any) -> None:
    await part.stopService()
