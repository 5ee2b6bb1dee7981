"""``anbox adb``: what adb does, without an adb program."""

from __future__ import annotations

import json
import os
import stat as stat_module
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from anbox_tw.cli._child import twistd_command
from anbox_tw.cli._run import run
from anbox_tw.errors import AdbError, ConfigError, HostLacks

if TYPE_CHECKING:
    from anbox_tw.adb.client import AdbClient, Device, Progress

__all__ = ["adb"]

START_TIMEOUT_S = 15.0


class Target:
    """Which server and device the options name."""

    def __init__(
        self,
        serial: str | None,
        transport_id: int | None,
        usb: bool,
        local: bool,
        host: str | None,
        port: int | None,
        direct: str | None,
    ) -> None:
        self.serial = serial or os.environ.get("ANDROID_SERIAL") or None
        self.transport_id = transport_id
        self.usb = usb
        self.local = local
        self.host = host
        self.port = port
        self.direct = direct

    @property
    def is_local(self) -> bool:
        """Whether a missing server may be started here."""
        return self.host is None and not os.environ.get("ANDROID_ADB_SERVER_ADDRESS")

    def environment(self) -> dict[str, str]:
        """The environment that names the server."""
        env = dict(os.environ)
        if self.host is not None or self.port is not None:
            env.pop("ADB_SERVER_SOCKET", None)
        if self.host is not None:
            env["ANDROID_ADB_SERVER_ADDRESS"] = self.host
        if self.port is not None:
            env["ANDROID_ADB_SERVER_PORT"] = str(self.port)
        return env

    async def client(self, reactor: Any, *, start: bool = True) -> AdbClient:
        """A client of the server, which is started if there is none."""
        from anbox_tw.adb.client import AdbClient, ServerNotRunning
        from anbox_tw.adb.client.links import server_endpoint

        if self.direct is not None:
            raise ConfigError("--direct has no meaning here", "leave it out: this asks an adb server")
        client = AdbClient(reactor, server_endpoint(reactor, self.environment()))
        if start and self.is_local:
            try:
                await client.version()
            except ServerNotRunning:
                await start_server(reactor, client, self.environment())
        return client

    async def device(self, reactor: Any) -> Device:
        """The device."""
        if self.direct is not None:
            from twisted.internet.endpoints import clientFromString

            from anbox_tw.adb.client import connect_device

            address: Any = self.direct
            if self.direct.startswith(("unix:", "tcp:", "tls:", "ssl:", "haproxy:")):
                try:
                    address = clientFromString(reactor, self.direct)
                except (ValueError, TypeError) as error:
                    raise ConfigError(f"--direct {self.direct}: not an endpoint: {error}") from error
            return await connect_device(reactor, address)
        client = await self.client(reactor)
        return client.device(
            self.serial if self.transport_id is None else None,
            transport_id=self.transport_id,
            usb=self.usb,
            local=self.local,
        )


async def start_server(reactor: Any, client: AdbClient, environment: dict[str, str]) -> None:
    """Start our adb server in the background and wait until it answers.

    Raises:
        HostLacks: it does not come up.
    """
    from twisted.internet.task import deferLater

    from anbox_tw.adb.client import ServerNotRunning

    click.echo("* no adb server is running; starting one", err=True)
    command = twistd_command("anbox-adb-server")
    process = subprocess.Popen(  # vfork: it returns at once
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        try:
            await client.version()
            return
        except ServerNotRunning:
            await deferLater(reactor, 0.05)
        if process.poll() is not None:
            break
    raise HostLacks("the adb server did not start", f"try it by hand to see why: {' '.join(command)}")


def on_device(function: Callable[[Any, Device], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine with the device that the options name."""
    target: Target = click.get_current_context().find_object(Target)  # type: ignore[assignment]

    async def main(reactor: Any) -> Any:
        device = await target.device(reactor)
        try:
            return await function(reactor, device)
        finally:
            await device.close()

    return run(main)


def on_server(function: Callable[[Any, AdbClient], Coroutine[Any, Any, Any]], *, start: bool = True) -> Any:
    """Run a coroutine with a client of the server."""
    target: Target = click.get_current_context().find_object(Target)  # type: ignore[assignment]

    async def main(reactor: Any) -> Any:
        return await function(reactor, await target.client(reactor, start=start))

    return run(main)


@contextmanager
def progress_bar(shown: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A bar on standard error for long transfers, where that is a terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None)
        last = 0.0

        def report(progress: Progress) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > 0.1 or progress.done >= progress.total:
                last = now
                name = os.path.basename(progress.path)
                bar.update(task, description=name[-40:], completed=progress.done, total=progress.total)

        yield report


@click.group()
@click.option("--serial", "-s", metavar="SERIAL", help="The device with this serial.  [env: ANDROID_SERIAL]")
@click.option("--transport-id", "-t", type=int, metavar="N", help="The device with this transport number.")
@click.option("--usb", "-d", is_flag=True, help="The only device on USB.")
@click.option("--local", "-e", is_flag=True, help="The only device on TCP, emulators included.")
@click.option("--host", "-H", metavar="ADDRESS", help="Host of the adb server.  [default: this one]")
@click.option("--port", "-P", type=click.IntRange(1, 65535), help="Port of the adb server.  [default: 5037]")
@click.option(
    "--direct", metavar="HOST:PORT", help="No server: this device, also unix:PATH or another endpoint."
)
@click.pass_context
def adb(
    context: click.Context,
    serial: str | None,
    transport_id: int | None,
    usb: bool,
    local: bool,
    host: str | None,
    port: int | None,
    direct: str | None,
) -> None:
    """Talk ADB without an adb program.

    Uses the adb server that runs, ours or Google's, and starts ours if there is none. With --direct no
    server is needed.
    """
    context.obj = Target(serial, transport_id, usb, local, host, port, direct)


@adb.command()
@click.option("--long", "-l", is_flag=True, help="Product, model and number too.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--watch", is_flag=True, help="Go on: print the list again after each change.")
def devices(long: bool, as_json: bool, watch: bool) -> None:
    """List the devices that the server knows."""

    def show(found: Sequence[Any]) -> None:
        if as_json:
            click.echo(json.dumps([{"serial": d.serial, "state": d.state, **d.properties} for d in found]))
            return
        click.echo("List of devices attached")
        for info in found:
            more = "".join(f" {key}:{value}" for key, value in info.properties.items()) if long else ""
            click.echo(f"{info.serial:<22} {info.state}{more}" if long else f"{info.serial}\t{info.state}")

    async def main(reactor: Any, client: AdbClient) -> None:
        if not watch:
            show(await client.devices())
            return
        async for found in client.track_devices():
            show(found)

    on_server(main)


@adb.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-n", "no_stdin", is_flag=True, help="Do not read standard input.")
@click.option("-T", "no_pty", is_flag=True, help="No terminal.")
@click.option("-t", "pty", is_flag=True, help="A terminal.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(no_stdin: bool, no_pty: bool, pty: bool, command: tuple[str, ...]) -> None:
    """Run a command, or an interactive shell; exits as it does."""
    from anbox_tw.cli._adb_terminal import run_shell

    wanted = True if pty else False if no_pty else None
    words = command[1:] if command[:1] == ("--",) else command

    async def main(reactor: Any, device: Device) -> int:
        return await run_shell(reactor, device, " ".join(words), pty=wanted, stdin=not no_stdin)

    sys.exit(on_device(main))


@adb.command("exec-out", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_out(command: tuple[str, ...]) -> None:
    """Run a command and write its raw output."""
    from anbox_tw.cli._adb_terminal import copy_out

    async def main(reactor: Any, device: Device) -> None:
        await copy_out(await device.open(f"exec:{' '.join(command)}", stall_timeout=None))

    on_device(main)


_COMPRESSION = click.Choice(["any", "none", "brotli", "lz4", "zstd"])


@adb.command()
@click.option("-z", "compression", type=_COMPRESSION, default="any", show_default=True, help="Compression.")
@click.option("-n", "dry_run", is_flag=True, help="The device throws everything away.")
@click.option("--resume", is_flag=True, help="Leave out files that are there with the same size and time.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True))
@click.argument("target")
def push(
    compression: str, dry_run: bool, resume: bool, quiet: bool, sources: tuple[str, ...], target: str
) -> None:
    """Copy files and directories to the device."""
    started = time.monotonic()

    async def main(reactor: Any, device: Device) -> int:
        with progress_bar(not quiet) as progress:
            return await device.push(
                sources, target, compression=compression, dry_run=dry_run, resume=resume, progress=progress
            )

    _summary("pushed", on_device(main), started)


@adb.command()
@click.option("-z", "compression", type=_COMPRESSION, default="none", show_default=True, help="Compression.")
@click.option("-a", "preserve", is_flag=True, help="Keep time and permissions.")
@click.option(
    "--resume", is_flag=True, help="Leave out files that are there with the same size and time; implies -a."
)
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
@click.argument("sources", nargs=-1, required=True)
@click.argument("target", default=".")
def pull(
    compression: str, preserve: bool, resume: bool, quiet: bool, sources: tuple[str, ...], target: str
) -> None:
    """Copy files and directories from the device."""
    started = time.monotonic()

    async def main(reactor: Any, device: Device) -> int:
        with progress_bar(not quiet) as progress:
            return await device.pull(
                sources,
                target,
                compression=compression,
                preserve=preserve or resume,
                resume=resume,
                progress=progress,
            )

    _summary("pulled", on_device(main), started)


def _summary(word: str, count: int, started: float) -> None:
    click.echo(
        f"{count} file{'' if count == 1 else 's'} {word} in {time.monotonic() - started:.2f} s", err=True
    )


@adb.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.argument("path")
def ls(as_json: bool, path: str) -> None:
    """List a directory of the device."""

    async def main(reactor: Any, device: Device) -> Any:
        if not (await device.stat(path)).is_dir:
            raise AdbError(f"{path} is no directory of the device")
        return await device.listdir(path)

    entries = sorted(on_device(main), key=lambda entry: entry.name)
    if as_json:
        fields = ("name", "mode", "size", "mtime", "uid", "gid")
        click.echo(json.dumps([{name: getattr(entry, name) for name in fields} for entry in entries]))
        return
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime))
        click.echo(f"{stat_module.filemode(entry.mode)} {entry.size:>12} {when} {entry.name}")


@adb.command()
@click.option("--list", "show", is_flag=True, help="List them.")
@click.option("--no-rebind", is_flag=True, help="Fail where LOCAL is forwarded already.")
@click.option("--remove", metavar="LOCAL", help="End one.")
@click.option("--remove-all", is_flag=True, help="End all.")
@click.argument("local", required=False)
@click.argument("remote", required=False)
def forward(
    show: bool, no_rebind: bool, remove: str | None, remove_all: bool, local: str | None, remote: str | None
) -> None:
    """Lead connections to LOCAL, such as tcp:8080, to REMOTE on the device; stays until ended when --direct."""

    async def main(reactor: Any, device: Device) -> None:
        await _change_forwards(
            device.list_forwards,
            device.forward,
            device.remove_forward,
            show,
            no_rebind,
            remove,
            remove_all,
            local,
            remote,
        )
        if local is not None and click.get_current_context().find_object(Target).direct:  # type: ignore[union-attr]
            # Without a server we are the one who listens.
            await device.link.transport.when_closed()  # type: ignore[attr-defined]

    on_device(main)


@adb.command()
@click.option("--list", "show", is_flag=True, help="List them.")
@click.option("--no-rebind", is_flag=True, help="Fail where REMOTE is forwarded already.")
@click.option("--remove", metavar="REMOTE", help="End one.")
@click.option("--remove-all", is_flag=True, help="End all.")
@click.argument("remote", required=False)
@click.argument("local", required=False)
def reverse(
    show: bool, no_rebind: bool, remove: str | None, remove_all: bool, remote: str | None, local: str | None
) -> None:
    """Lead connections to REMOTE on the device to LOCAL here; stays until ended when --direct."""

    async def main(reactor: Any, device: Device) -> None:
        await _change_forwards(
            device.list_reverses,
            device.reverse,
            device.remove_reverse,
            show,
            no_rebind,
            remove,
            remove_all,
            remote,
            local,
        )
        if local is not None and click.get_current_context().find_object(Target).direct:  # type: ignore[union-attr]
            await device.link.transport.when_closed()  # type: ignore[attr-defined]

    on_device(main)


async def _change_forwards(
    lister: Any,
    adder: Any,
    remover: Any,
    show: bool,
    no_rebind: bool,
    remove: str | None,
    remove_all: bool,
    one: str | None,
    other: str | None,
) -> None:
    if show:
        for line in await lister():
            click.echo(" ".join(line))
    elif remove_all or remove is not None:
        await remover(None if remove_all else remove)
    elif one is None or other is None:
        raise ConfigError("both ends of the forward are needed", "for example tcp:8080 tcp:80")
    else:
        port = await adder(one, other, rebind=not no_rebind)
        if port is not None:
            click.echo(port)


@adb.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED)
def install(arguments: tuple[str, ...]) -> None:
    """Install a package from one APK, or from several that belong together; options go to the device."""
    paths = [argument for argument in arguments if os.path.exists(argument)]
    options = [argument for argument in arguments if argument not in paths]
    if not paths:
        raise ConfigError(f"there is no file {arguments[-1]}")

    async def main(reactor: Any, device: Device) -> None:
        with progress_bar(True) as progress:
            await device.install(paths, options, progress=progress)

    on_device(main)
    click.echo("Success")


@adb.command()
@click.option("--keep", "-k", is_flag=True, help="Keep data and cache.")
@click.argument("package")
def uninstall(keep: bool, package: str) -> None:
    """Remove a package."""

    async def main(reactor: Any, device: Device) -> None:
        await device.uninstall(package, ["-k"] if keep else [])

    on_device(main)
    click.echo("Success")


@adb.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def logcat(arguments: tuple[str, ...]) -> None:
    """Show the device's log."""
    from anbox_tw.cli._adb_terminal import run_shell

    async def main(reactor: Any, device: Device) -> int:
        line = " ".join(["logcat", *arguments])
        return await run_shell(reactor, device, line, pty=False, stdin=False)

    sys.exit(on_device(main))


def _simple(name: str, help_text: str, call: Callable[..., Any], *params: click.Parameter) -> None:
    """A command that prints what one method of the device returns."""

    def callback(**arguments: Any) -> None:
        async def main(reactor: Any, device: Device) -> Any:
            return await call(device, **arguments)

        text = on_device(main)
        if text:
            click.echo(text.rstrip("\n"))

    adb.add_command(click.Command(name, callback=callback, help=help_text, params=list(params)))


_simple("get-state", "Print the device's state.", lambda device: device.state())
_simple("get-serialno", "Print the device's serial.", lambda device: device.serial())
_simple("root", "Restart adbd as root.", lambda device: device.root())
_simple("unroot", "Restart adbd without root.", lambda device: device.unroot())
_simple("usb", "Have adbd listen on USB.", lambda device: device.usb())
_simple(
    "tcpip",
    "Have adbd listen on a TCP port.",
    lambda device, port: device.tcpip(port),
    click.Argument(["port"], type=int),
)
_simple(
    "reboot",
    "Restart the device, into bootloader, recovery, ...",
    lambda device, mode: device.reboot(mode),
    click.Argument(["mode"], default=""),
)
_simple(
    "remount",
    "Make system partitions writable.",
    lambda device, arguments: device.remount(" ".join(arguments)),
    click.Argument(["arguments"], nargs=-1),
)
_simple(
    "wait-for",
    "Wait until the device is in a state: device, recovery, disconnect, ...",
    lambda device, state, timeout: device.wait_for(state, timeout=timeout),
    click.Argument(["state"], default="device"),
    click.Option(["--timeout"], type=float, default=60.0, show_default=True, help="Seconds."),
)


@adb.command()
def features() -> None:
    """List what the device can do."""

    async def main(reactor: Any, device: Device) -> Any:
        return await device.features()

    click.echo("\n".join(sorted(on_device(main))))


@adb.command()
def jdwp() -> None:
    """List the processes that a debugger can attach to."""

    async def main(reactor: Any, device: Device) -> Any:
        return await device.jdwp()

    for pid in on_device(main):
        click.echo(pid)


@adb.command()
@click.argument("address")
def connect(address: str) -> None:
    """Have the server connect to a device: HOST[:PORT]."""

    async def main(reactor: Any, client: AdbClient) -> str:
        return await client.connect(address)

    click.echo(on_server(main))


@adb.command()
@click.argument("address", default="")
def disconnect(address: str) -> None:
    """Have the server forget a device on TCP, or all."""

    async def main(reactor: Any, client: AdbClient) -> str:
        return await client.disconnect(address)

    click.echo(on_server(main))


@adb.command()
@click.argument("address")
@click.argument("code", required=False)
def pair(address: str, code: str | None) -> None:
    """Pair with a device: HOST:PORT of its pairing port, and the code it shows."""
    secret = code or click.prompt("Enter pairing code", err=True)
    target: Target = click.get_current_context().find_object(Target)  # type: ignore[assignment]
    if target.direct is not None:
        raise ConfigError("--direct has no meaning here", "give the address alone; no server is needed")

    async def main(reactor: Any) -> str:
        from anbox_tw.adb.client import pair_device

        return await pair_device(reactor, address, secret)

    click.echo(f"Successfully paired to {address} [guid={run(main)}]")


@adb.command("start-server")
def start_server_command() -> None:
    """Start an adb server if none is running."""

    async def main(reactor: Any, client: AdbClient) -> int:
        return await client.version()

    on_server(main)


@adb.command("kill-server")
def kill_server() -> None:
    """End the adb server."""

    async def main(reactor: Any, client: AdbClient) -> None:
        await client.kill()

    on_server(main, start=False)


@adb.command("server-version")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def server_version(as_json: bool) -> None:
    """Print the version of the server's protocol and what it can do."""

    async def main(reactor: Any, client: AdbClient) -> tuple[int, frozenset[str]]:
        return await client.version(), await client.server_features()

    version, names = on_server(main)
    if as_json:
        click.echo(json.dumps({"version": version, "features": sorted(names)}))
    else:
        click.echo(f"1.0.{version}")


@adb.command()
@click.argument("path", type=click.Path())
def keygen(path: str) -> None:
    """Make a new key: PATH and PATH.pub."""
    from anbox_tw.adb.keys import AdbKey

    AdbKey.generate().save(path)
