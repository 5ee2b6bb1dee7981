"""``anbox up``: one container and its session, in the foreground or detached."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from twisted.internet.defer import CancelledError, Deferred

from anbox_tw.cli._again import IN_FRONT, remember, start_in_background
from anbox_tw.cli._child import Child, twistd_command
from anbox_tw.cli._control import open_control
from anbox_tw.cli._instance import Instance, instance_options
from anbox_tw.cli._run import first_of, pause, run
from anbox_tw.container.diagnosis import CODES
from anbox_tw.container.imagestore.store import resolve_image
from anbox_tw.errors import AnboxError, ConfigError, ExitCode, HostLacks
from anbox_tw.rpc import ChannelClosed
from anbox_tw.rpc._pb import anbox_session_pb2 as pb
from anbox_tw.session.audio.choice import check_audio, check_microphone
from anbox_tw.session.host_clipboard import CLIPBOARDS

__all__ = ["up"]

MANAGER_RESTARTS = 5
"""A manager that dies more often than this within ``MANAGER_RESTART_WINDOW_S`` is not started again."""

MANAGER_RESTART_WINDOW_S = 60.0

MANAGER_RESTART_DELAY_S = 0.5

FAILURE = re.compile(r"(ANBOX-C\d{3}): (.*?)(?: \(([^()]*(?:\([^()]*\)[^()]*)*)\))?$", re.S)
"""A failure's text as a session tells it: code, cause, and the cure in brackets."""

INIT_ENDED = "ANBOX-C014"
INIT_ENDED_LIMIT = 3
"""An init that ends by itself is started again; one that has done so this often before any boot never comes up."""

CONTROL_TIMEOUT_S = 60.0
"""A session that has no control socket by then does not come up."""

FOLLOW_AGAIN_S = 0.2
OUTPUT_LINES = 20
OUTPUT_LINES_DETACHED = 40

BOOT_TIMEOUT_S = 120.0
"""How long a detached ``up`` waits for the guest's boot unless told otherwise."""


@dataclass(frozen=True)
class Wanted:
    """What the user wants to run; handed on to the two managers."""

    backend: str
    rootfs: str | None
    image: str | None
    data_path: str | None
    adb_server: str | None
    manager: str | None
    launchers: bool = False
    clipboard: str | None = None
    audio: str | None = None
    microphone: str | None = None
    touch_emulation: bool = True
    dbus: str | None = None
    hardware: tuple[str, ...] = ()
    host_loopback: bool = False

    def manager_options(self, where: Instance) -> list[str]:
        """Options of ``twistd anbox-container``."""
        options = ["--socket", str(where.manager), "--runtime-dir", str(where.paths.runtime_dir)]
        options += ["--netd-socket-dir", where.paths.netd, "--backend", self.backend]
        return [*options, *["--host-loopback"] * self.host_loopback]

    def session_options(self, where: Instance) -> list[str]:
        """Options of ``twistd anbox-session``."""
        options = ["--instance", where.name, "--runtime-dir", str(where.paths.runtime_dir)]
        options += ["--container-manager", self.manager or str(where.manager), "--backend", self.backend]
        for name in (
            "rootfs",
            "image",
            "data_path",
            "adb_server",
            "clipboard",
            "audio",
            "microphone",
            "dbus",
        ):
            value = getattr(self, name)
            if value is not None:
                options += ["--" + name.replace("_", "-"), value]
        flags = ["--launchers"] * self.launchers + ["--no-touch-emulation"] * (not self.touch_emulation)
        return [*options, *flags, *self.hardware]


@click.command()
@instance_options
@click.option(
    "--backend",
    type=click.Choice(["process", "lxc"]),
    help="How the container is run. 'process' needs no root and no image; 'lxc' needs root."
    "  [default: process; lxc with --image]",
)
@click.option(
    "--rootfs",
    metavar="host|DIR",
    help="What the container sees as /: 'host' (the host's own root; nothing is written to it) or a directory."
    "  [default: host]",
)
@click.option(
    "--image",
    metavar="NAME|FILE",
    help="An Android image instead of --rootfs: one of 'anbox image list', or a file (squashfs or ext4).",
)
@click.option(
    "--data-path", metavar="DIR", envvar="ANBOX_DATA_PATH", help="Where the instance keeps its data."
)
@click.option(
    "--adb-server", metavar="HOST:PORT", help="The adb server to register with.  [default: as adb does]"
)
@click.option(
    "--manager", metavar="PATH", help="Use the container manager that listens there, not one of our own."
)
@click.option(
    "--launchers/--no-launchers",
    help="Make a launcher in the desktop's menu for each application of the guest.  [default: no-launchers]",
)
@click.option(
    "--clipboard",
    type=click.Choice(["auto", "private", *CLIPBOARDS]),
    help="The clipboard that the guest shares: the desktop's, or a private one.  [default: auto]",
)
@click.option(
    "--audio",
    metavar="SINK",
    help="Where the guest's sound goes: auto, pulse, pipewire, wav:PATH or null.  [default: auto]",
)
@click.option(
    "--microphone",
    metavar="SOURCE",
    help="What the guest records: silence, tone, wav:PATH, raw:PATH, pulse, pipewire or none.  [default: silence]",
)
@click.option(
    "--touch-emulation/--no-touch-emulation",
    default=True,
    help="Whether the mouse is a finger.  [default: touch-emulation]",
)
@click.option(
    "--dbus",
    type=click.Choice(["session", "system", "none"]),
    help="The bus that the session is on as org.anbox.  [default: session]",
)
@click.option(
    "--camera",
    "cameras",
    metavar="[front=]SOURCE",
    multiple=True,
    help="What a camera shows: test-pattern, none, image:PATH or video:PATH.  [default: back=test-pattern, front=none]",
)
@click.option("--disabled-sensors", metavar="NAMES", help="Sensors that the device shall not have, by comma.")
@click.option(
    "--allow-outward",
    "allowed",
    metavar="PATTERN",
    multiple=True,
    help="What the guest may connect to on the host: tcp:PORT, tcp:HOST:PORT, unix:PATH.  [default: nothing]",
)
@click.option(
    "--host-loopback",
    is_flag=True,
    help="10.0.2.2 leads the guest to what listens on the host's 127.0.0.1, as in the emulator.",
)
@click.option(
    "--renderer", metavar="ENDPOINT", help="What draws for the guest's opengles.  [default: nothing]"
)
@click.option("-d", "--detach", is_flag=True, help="Return when the guest has booted; the instance goes on.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=BOOT_TIMEOUT_S,
    show_default=True,
    help="With --detach: how many seconds to wait for the boot.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show what the managers log, too.")
def up(
    instance: str,
    runtime_dir: str | None,
    backend: str | None,
    rootfs: str | None,
    image: str | None,
    data_path: str | None,
    adb_server: str | None,
    manager: str | None,
    launchers: bool,
    clipboard: str | None,
    audio: str | None,
    microphone: str | None,
    touch_emulation: bool,
    dbus: str | None,
    cameras: tuple[str, ...],
    disabled_sensors: str | None,
    allowed: tuple[str, ...],
    host_loopback: bool,
    renderer: str | None,
    detach: bool,
    timeout: float,
    verbose: bool,
) -> int:
    """Start a container and its session; Ctrl-C stops both and leaves nothing behind but the data."""
    if image and rootfs:
        raise ConfigError("--image and --rootfs exclude each other", "leave one out")
    backend = backend or ("lxc" if image else "process")
    if image:
        kind, found = resolve_image(image)
        image, rootfs = (found, None) if kind == "image" else (None, found)
    if image and not Path(image).exists():
        raise AnboxError(f"the image {image} does not exist", "check --image", code="ANBOX-C002")
    if rootfs and rootfs != "host" and not Path(rootfs).is_dir():
        raise AnboxError(f"the rootfs {rootfs} is not a directory", "check --rootfs", code="ANBOX-C002")
    if backend == "lxc" and os.geteuid() != 0 and manager is None:
        raise HostLacks(
            "the lxc backend needs root",
            "run 'sudo anbox up --backend lxc', or name the socket of a manager that runs as root with --manager",
        )
    where = Instance.locate(instance, runtime_dir, create=True)
    wanted = Wanted(
        backend,
        str(Path(rootfs).absolute()) if rootfs and rootfs != "host" else rootfs,
        str(Path(image).absolute()) if image else None,
        str(Path(data_path).absolute()) if data_path else None,
        adb_server,
        str(Path(manager).absolute()) if manager else None,
        launchers,
        clipboard,
        check_audio(audio) if audio is not None else None,
        check_microphone(microphone) if microphone is not None else None,
        touch_emulation,
        dbus,
        _hardware_options(cameras, disabled_sensors, allowed, renderer),
        host_loopback,
    )
    if detach and os.environ.pop(IN_FRONT, None) is None:
        return run(lambda reactor: _detached(reactor, where, wanted.data_path, timeout))
    return run(lambda reactor: _Up(reactor, where, wanted, verbose=verbose).main(), patient=True)


def _hardware_options(
    cameras: tuple[str, ...], disabled_sensors: str | None, allowed: tuple[str, ...], renderer: str | None
) -> tuple[str, ...]:
    """The session's options for its hardware, checked; paths are made absolute, for it runs in another directory.

    Raises:
        ConfigError: one of them is none.
    """
    from anbox_tw.qemu.camera_sources import parse_source
    from anbox_tw.qemu.outward import Allowance

    words = []
    for camera in cameras:
        direction, equals, source = (
            camera.partition("=") if camera.startswith(("back=", "front=")) else ("", "", camera)
        )
        kind, path = parse_source(source)
        words.append(f"--camera={direction}{equals}{kind}{f':{path}' if path else ''}")
    for pattern in allowed:
        Allowance.parse(pattern)
        words.append(f"--allow-outward={pattern}")
    if disabled_sensors is not None:
        words.append(f"--disabled-sensors={disabled_sensors}")
    if renderer is not None:
        words.append(f"--renderer={renderer}")
    return tuple(words)


async def _detached(reactor: Any, where: Instance, data_path: str | None, seconds: float) -> int:
    """Start ``anbox up`` as a process of its own and wait until the guest has booted."""
    where.take().release()  # raises AlreadyRunning with all its words
    log = where.log_dir(data_path) / "up.log"
    child = await start_in_background(reactor, where, sys.argv[1:], log, seconds)
    if child is not None:
        for line in child.output(OUTPUT_LINES_DETACHED):
            click.echo(line, err=True)
        return child.exit_code or ExitCode.FAILED
    click.echo(f"instance '{where.name}' has booted; stop it with 'anbox down{where.option}'")
    return ExitCode.OK


class _Up:
    """The two managers of one instance, from their start to their end."""

    def __init__(self, reactor: Any, where: Instance, wanted: Wanted, *, verbose: bool) -> None:
        self._reactor = reactor
        self._where = where
        self._wanted = wanted
        self._verbose = verbose
        self._session = self._child("session", "anbox-session", wanted.session_options(where))
        self._manager = self._child("manager", "anbox-container", wanted.manager_options(where))
        self._deaths: deque[float] = deque(maxlen=MANAGER_RESTARTS)
        self._began = 0.0
        self._told_boot = False
        self._manager_served = False
        self._starts = 0
        self._last_event = ""
        self._told_waiting: set[str] = set()

    def _child(self, name: str, command: str, options: list[str]) -> Child:
        return Child(
            self._reactor,
            name,
            twistd_command(command, *options),
            self._where.log_dir(self._wanted.data_path) / f"{name}.log",
        )

    async def main(self) -> int:
        """Run until a signal, ``anbox down``, or a failure that only the user can mend."""
        lock = self._where.take(self._wanted.data_path)
        remember(self._where)
        self._began = self._reactor.seconds()
        try:
            return await self._run()
        except CancelledError:
            return ExitCode.OK
        finally:
            self._say("stopping")
            await self._session.stop()
            await self._manager.stop()
            # First what others' locks do not guard: the next `up` may begin as soon as ours is gone.
            self._where.tidy()
            lock.release()
            self._where.tidy_above()
            self._say("stopped; nothing is left but the data")

    async def _run(self) -> int:
        self._say(f"instance '{self._where.name}', sockets in {self._where.paths.sockets}")
        try:
            if self._wanted.manager is None:
                self._manager.start()
            self._session.start()
        except OSError as error:
            raise ConfigError(
                f"cannot write the logs in {self._session.log_path.parent}: {error.strerror}",
                "choose a directory of your own with --data-path",
            ) from error
        contenders: list[Deferred[Any]] = [self._session.when_ended(), Deferred.fromCoroutine(self._follow())]
        if self._wanted.manager is None:
            contenders.append(Deferred.fromCoroutine(self._keep_manager()))
        place, result = await first_of(*contenders)
        if place != 0:
            assert isinstance(result, AnboxError)
            raise result
        if self._session.exit_code == 0:
            self._say("the session has ended")
            return ExitCode.OK
        self._show_output(self._session)
        self._say(f"the session {result}")
        return self._session.exit_code or ExitCode.FAILED

    async def _keep_manager(self) -> AnboxError:
        """Start the manager again when it dies; returns why not, when that makes no sense."""
        while True:
            how = await self._manager.when_ended()
            now = self._reactor.seconds()
            if not self._manager_served:
                self._show_output(self._manager)
                return _WithExitCode(
                    f"the container manager {how}", "the lines above say why", self._manager.exit_code
                )
            self._deaths.append(now)
            if len(self._deaths) == MANAGER_RESTARTS and now - self._deaths[0] < MANAGER_RESTART_WINDOW_S:
                self._show_output(self._manager)
                return AnboxError(
                    f"the container manager ended {MANAGER_RESTARTS} times within {MANAGER_RESTART_WINDOW_S:g} s",
                    f"see 'anbox logs{self._where.option} manager'",
                )
            self._say(f"the container manager {how}; starting it again")
            await pause(self._reactor, MANAGER_RESTART_DELAY_S)
            self._manager.start()

    async def _follow(self) -> AnboxError:
        """Tell what the session does; returns why the container cannot run, if that is so."""
        while True:
            link = await open_control(
                self._reactor,
                self._where,
                wait_until=self._reactor.seconds() + CONTROL_TIMEOUT_S,
                on_event=self._event,
            )
            self._failed: Deferred[AnboxError] = Deferred()
            try:
                self._look(await link.watch())
                _, result = await first_of(self._failed, link.closed())
                if isinstance(result, AnboxError) and not isinstance(result, ChannelClosed):
                    return result
            except ChannelClosed:
                pass
            finally:
                await link.close()
            await pause(self._reactor, FOLLOW_AGAIN_S)

    def _event(self, event: pb.SessionEvent) -> None:
        if event.kind == "phase" and event.name == "starting":
            self._starts += 1
        detail = f": {event.detail}" if event.detail else ""
        text = f"{event.kind} {event.name}".strip() + detail
        if self._verbose or event.kind in ("container", "phase", "level", "adb"):
            # A session that tries again and again says the same each time: told once is enough.
            again = event.kind == "phase" and event.name in ("connecting", "waiting")
            if not again:
                self._told_waiting.clear()
            if text != self._last_event and text not in self._told_waiting:
                self._say(text)
            if again:
                self._told_waiting.add(text)
        self._last_event = text
        self._look(event.info)

    def _look(self, info: pb.SessionInfo) -> None:
        """Look at what the session is now: has it booted, or has its container failed for good?"""
        if info.container.state in ("starting", "preparing", "running"):
            self._manager_served = True
        code = info.container.failure.partition(":")[0]
        if code in CODES and not self._told_boot and not self._failed.called:
            cause, _, cure = info.container.failure.partition(": ")[2].rpartition(" (")
            error = _WithExitCode(
                cause or info.container.failure, cure.rstrip(")"), CODES[code].exit_code, code
            )
            self._failed.callback(error)
        if info.booted and not self._told_boot:
            self._told_boot = True
            self._summary(info)

    def _summary(self, info: pb.SessionInfo) -> None:
        option = self._where.option
        anbox = "anbox" if shutil.which("anbox") else str(Path(sys.executable).parent / "anbox")
        serial = info.serial or "none yet"
        click.echo()
        click.echo(
            f"  instance '{self._where.name}' has booted in {self._reactor.seconds() - self._began:.1f} s"
        )
        click.echo(f"    serial   {serial}  (adb port {info.adb_port})")
        for socket in info.sockets:
            click.echo(f"    socket   {socket.path}")
        click.echo(f"    data     {info.container.data_path or self._where.paths.data_path()}")
        click.echo("  next, in another terminal:")
        click.echo(f"    {anbox} shell{option}")
        click.echo(f"    {anbox} ps")
        if info.serial:
            click.echo(f"    adb -s {serial} shell")
        click.echo("  Ctrl-C stops it.")
        click.echo()

    def _show_output(self, child: Child) -> None:
        for line in child.output(OUTPUT_LINES):
            click.echo(f"  {child.name}: {line}", err=True)

    def _say(self, text: str) -> None:
        click.echo(f"[{self._reactor.seconds() - self._began:6.1f} s] {text}")


class _WithExitCode(AnboxError):
    """A failure whose exit code comes from elsewhere."""

    def __init__(self, cause: str, cure: str, exit_code: int | None, code: str = "") -> None:
        super().__init__(cause, cure, code=code)
        self.exit_code = ExitCode(exit_code) if exit_code in set(ExitCode) and exit_code else ExitCode.FAILED
