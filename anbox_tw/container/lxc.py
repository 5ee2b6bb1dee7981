"""The lxc backend: a container of its own pid, mount, network and user namespaces, by LXC's tools.

The ``lxc-*`` tools are child processes; liblxc's Python binding would hold the interpreter while it waits. All
that LXC gets to see is mounted by us first (`anbox_tw.container.lxc_staging`) and written to the journal, so a
killed manager leaves nothing that its successor cannot take away.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import stat
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from zope.interface import implementer

from anbox_tw.container import lxc_rootfs as rootfs_of
from anbox_tw.container._acl import ACL_ATTRIBUTE, acl_with_user, allows_user
from anbox_tw.container._lxc_config import LxcConfig, MountEntry, NetworkInterface
from anbox_tw.container._lxc_diagnosis import explain
from anbox_tw.container.commands import Commands, Completed, find_tool
from anbox_tw.container.devices import (
    ANDROID_DEVICES,
    DeviceNode,
    allocate_binder,
    device_rules,
    make_node,
)
from anbox_tw.container.diagnosis import DiagnosedError, Probe, log_tail
from anbox_tw.container.guest_sockets.gate import GuestGate, HelperProcess
from anbox_tw.container.idmap import IdMap, idmap_for
from anbox_tw.container.images import ImageMounter
from anbox_tw.container.ipconfig import IpConfig, write_ipconfig
from anbox_tw.container.journal import Journal
from anbox_tw.container.lxc_data import DataDirectories, read_bindtab
from anbox_tw.container.lxc_host import HostFacts, look_at_host
from anbox_tw.container.lxc_probes import probe_host
from anbox_tw.container.lxc_process import LxcProcess, StartedFifo, clean_path, handles_signal
from anbox_tw.container.lxc_staging import Staging, is_open_to_all, staging_path
from anbox_tw.container.lxc_undo import add_lxc_kinds
from anbox_tw.container.network import ContainerNetwork, Lease
from anbox_tw.container.probes import helper_command
from anbox_tw.container.process_plan import PythonFacts
from anbox_tw.container.spec import HOST_ROOTFS, BindMount, ContainerSpec
from anbox_tw.container.undo import TOKEN_VARIABLE, read_mounts
from anbox_tw.interfaces import IContainerBackend, IReachableContainer

__all__ = ["LxcBackend", "LxcContainer"]

KILL_WAIT_S = 5.0  # until a killed init's namespaces are gone and LXC has cleaned up
RECONSIDER_S = 0.5  # after which an init that was asked to end is looked at again
RUNNING_TIMEOUT_S = 20  # for lxc-wait, whole seconds; LXC runs init within milliseconds of its hook
ANDROID_PATH = "/system/bin:/system/sbin:/system/xbin"
LINUX_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BINDER_CONTROL = "/dev/binderfs/binder-control"
MAX_LOG_BYTES = 1024 * 1024  # of LXC's log that are searched for its first complaint; a start writes 70 KiB

OpenSource = Callable[[BindMount, ContainerSpec], int]
"""Opens a bind mount's source with ``O_PATH``, as the caller if that is not us."""


def open_source(mount: BindMount, spec: ContainerSpec) -> int:
    """The default `OpenSource`: who asks was checked before."""
    try:
        return os.open(mount.source, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise DiagnosedError.of(
            "ANBOX-C008", f"the bind mount's source {mount.source} cannot be used", str(error.strerror)
        ) from error


@implementer(IContainerBackend)
class LxcBackend:
    """Runs containers with LXC; needs root."""

    name = "lxc"

    def __init__(
        self,
        reactor: Any,
        *,
        network: ContainerNetwork | None = None,
        open_source: OpenSource = open_source,
        dev: str = "/dev",
        proc: str = "/proc",
        look: Callable[[], HostFacts] = look_at_host,
    ) -> None:
        """Args:
        reactor: runs the tools and gives the time.
        network: gives the containers their addresses.
        open_source: opens bind mounts' sources.
        dev: where the host's device nodes are.
        proc: where procfs is.
        look: looks at the host.
        """
        self.reactor = reactor
        self.network = network or ContainerNetwork()
        self.open_source = open_source
        self.dev = dev
        self.proc = proc
        self.look = look

    def probe(self) -> Deferred[list[Probe]]:
        """Look at what LXC needs, and at what makes it better."""
        return ensureDeferred(probe_host(Commands(self.reactor), self.look(), dev=self.dev))

    def create(self, spec: ContainerSpec, journal: Journal) -> LxcContainer:
        """Make a container object; nothing on the host changes yet."""
        add_lxc_kinds(journal.kinds)
        return LxcContainer(self, spec, journal)


def container_key(spec: ContainerSpec) -> str:
    """A name that is one container's on this host, whatever manager and data path."""
    digest = hashlib.sha256(os.fsencode(spec.data_path)).hexdigest()[:8]
    return f"{spec.instance}-{digest}"


def veth_name(key: str) -> str:
    """Name of the host's end of a container's veth pair, within the kernel's 15 characters."""
    return f"anbox{hashlib.sha256(key.encode()).hexdigest()[:9]}"


@implementer(IReachableContainer)
class LxcContainer:
    """One container; see `anbox_tw.interfaces.IContainer`."""

    _log = Logger()

    def __init__(self, backend: LxcBackend, spec: ContainerSpec, journal: Journal) -> None:
        """Args:
        backend: what made it.
        spec: what it is to be.
        journal: opened.
        """
        self.backend = backend
        self.spec = spec
        self.journal = journal
        self.key = container_key(spec)
        self.idmap: IdMap = idmap_for(spec.owner_uid, spec.owner_gid, privileged=spec.privileged)
        self.notes: list[str] = []
        self.lease: Lease | None = None
        self.rootfs: rootfs_of.Rootfs | None = None
        self.init: tuple[str, ...] = ()
        staged = staging_path(spec.run_path, self.key)
        # LXC insists that the container's root can get to its configuration.
        reachable = not self.idmap or is_open_to_all(spec.data_path, self.idmap.root_gid)
        self.lxcpath = f"{spec.data_path if reachable else staged}/containers"
        self._commands = Commands(backend.reactor)
        self._staging = Staging(staged, journal, self._commands, self.idmap)
        self._mounter = ImageMounter(self._commands, dev=backend.dev)
        self._process: LxcProcess | None = None
        self.gate: GuestGate | None = None
        self._helper: HelperProcess | None = None
        self._running = False
        self._stopping = False
        self._exit_waiters: list[Deferred[str]] = []

    # -- prepare --

    def prepare(self) -> Deferred[None]:
        """Make mounts, devices, network and configuration."""
        return _uncancelled(self._prepare())

    async def _prepare(self) -> None:
        spec, staging, facts = self.spec, self._staging, self.backend.look()
        data = DataDirectories(spec, self.idmap)
        data.make()
        staging.open()
        mounts, masks = await self._data_mounts(data)
        network = await self._network()
        mounts += await self._session_mounts()
        nodes = await self._devices(mounts)
        bindtab, notes = read_bindtab(spec.data_path)
        self.notes += notes
        properties = self._wants_properties()
        targets = [*masks, *mounts]
        if properties and spec.rootfs:
            targets.append(MountEntry("", "default.prop", optional=True))
        rootfs = await rootfs_of.build_rootfs(spec, staging, self._mounter, targets)
        self.rootfs = rootfs
        self.notes += rootfs.notes
        mounts += self._properties(rootfs)
        self.init = spec.init or (
            rootfs_of.guest_init() if spec.rootfs == HOST_ROOTFS else rootfs_of.default_init(rootfs)
        )
        rootfs_of.check_init(rootfs, self.init, mounts)
        if self.lease is not None:
            self._write_network_files(rootfs, self.lease)
        await self._write_config(rootfs, [*masks, *mounts], nodes, network, facts, bindtab)

    async def _data_mounts(self, data: DataDirectories) -> tuple[list[MountEntry], list[MountEntry]]:
        """Bind mounts of the instance's data, and for the host rootfs what hides and shows parts of it."""
        mounts = []
        for target, descriptor in data.opened():
            try:
                source = await self._staging.bind(descriptor, f"the instance's /{target}")
            finally:
                os.close(descriptor)
            # An image may have a link where /sdcard is (to /storage/...); then Android looks after it.
            mounts.append(MountEntry(source, target, directory=True, optional=target == "sdcard"))
        if self.spec.rootfs != HOST_ROOTFS:
            return mounts, []
        points = [mount.target for mount in read_mounts(self.journal.context)]
        paths = rootfs_of.guest_paths()
        if self.spec.init:
            paths = [path for path in paths if rootfs_of.is_readable(path, self.idmap)] + self._init_paths()
        needed = rootfs_of.needed_paths(paths, self.idmap, points)
        for each in needed:
            source = await self._staging.bind_path(each.path, each.path)
            mounts.append(MountEntry(source, each.path[1:], directory=each.directory, read_only=True))
        return mounts, rootfs_of.host_masks(needed)

    def _init_paths(self) -> list[str]:
        """Files that a given init command names, as far as they exist on the host.

        Only for root: with the manager's rights another caller would get to see what it cannot read itself.
        """
        if self.spec.owner_uid != 0:
            return []
        named = [path for path in self.spec.init if path.startswith("/") and os.path.isfile(path)]
        return list(dict.fromkeys([*named, *map(os.path.realpath, named)]))

    async def _session_mounts(self) -> list[MountEntry]:
        mounts = []
        for mount in self.spec.bind_mounts:
            descriptor = self.backend.open_source(mount, self.spec)
            try:
                status = os.fstat(descriptor)
                if stat.S_ISSOCK(status.st_mode):
                    self._let_in(descriptor, status, mount)
                source = await self._staging.bind(
                    descriptor, f"the bind mount's source {mount.source}", read_only=mount.read_only
                )
            finally:
                os.close(descriptor)
            mounts.append(
                MountEntry(
                    source,
                    mount.target,
                    directory=stat.S_ISDIR(status.st_mode),
                    read_only=mount.read_only,
                    recursive=False,
                )
            )
        return mounts

    def _let_in(self, descriptor: int, status: os.stat_result, mount: BindMount) -> None:
        """Let the container's root connect to a socket of the container's owner."""
        owner, root = (status.st_uid, status.st_gid), (self.idmap.root_uid, self.idmap.root_gid)
        known = self.idmap.maps_uid(owner[0]) and self.idmap.maps_gid(owner[1])
        if known or allows_user(status.st_mode, owner, root, 6) or owner[0] != self.spec.owner_uid:
            return
        path = f"/proc/self/fd/{descriptor}"
        try:
            try:
                existing = os.getxattr(path, ACL_ATTRIBUTE)
            except OSError:
                existing = b""
            os.setxattr(path, ACL_ATTRIBUTE, acl_with_user(status.st_mode, root[0], 6, existing))
        except (OSError, ValueError) as error:
            self.notes.append(f"the container cannot connect to {mount.source}: {error}")
            self._log.warn(
                "{instance}: {source} is closed to the container's root, and no access list can be set: {error}",
                instance=self.spec.instance,
                source=mount.source,
                error=error,
            )

    async def _devices(self, mounts: list[MountEntry]) -> list[DeviceNode]:
        """Make the container's nodes; their mount entries are added to ``mounts``."""
        wanted = {f"/dev/{node}": (f"dev/{name}", mode) for name, (node, mode) in ANDROID_DEVICES.items()}
        for device in self.spec.devices:
            path = device.path
            target = wanted[path][0] if path in wanted else path[1:]
            wanted[path] = (target, device.permission)
        directory = self._staging.directory("devices")
        nodes = []
        for path, (target, mode) in wanted.items():
            node = make_node(path, target, mode, directory, self.idmap, self.journal, dev=self.backend.dev)
            if node is not None:
                nodes.append(node)
            elif any(device.path == path for device in self.spec.devices):
                self.notes.append(f"the host has no {path}")
        binder = allocate_binder(self.backend.dev + BINDER_CONTROL[4:], self.journal, idmap=self.idmap)
        if binder is not None:
            nodes.append(DeviceNode("dev/binder", binder.path, binder.number))
        else:
            node = make_node(
                "/dev/binder", "dev/binder", 0o666, directory, self.idmap, self.journal, dev=self.backend.dev
            )
            nodes += [node] if node is not None else []
        taken = {mount.target for mount in mounts}
        for node in nodes:
            if node.note:
                self.notes.append(node.note)
            if node.target not in taken:
                mounts.append(MountEntry(node.source, node.target))
        return nodes

    async def _network(self) -> NetworkInterface | None:
        if self.spec.network.mode != "auto":
            return None
        lease = await self.backend.network.acquire(self.key, self.spec.network, self.journal)
        self.lease = lease
        self.notes += lease.notes
        host_name = veth_name(self.key)
        self.journal.record("veth", name=host_name)
        attach = ""
        if not os.path.isdir(f"{self.journal.context.sys}/class/net/{lease.bridge}/bridge"):
            # LXC looks for the bridge in sysfs, and this /sys is of another network namespace.
            command = [find_tool("ip") or "ip", "link", "set", "dev", host_name, "master", lease.bridge]
            attach = f"/bin/sh -c '{shlex.join(command)}' attach"
        return NetworkInterface(host_name, lease.bridge, str(lease.address), str(lease.gateway), attach)

    def _wants_properties(self) -> bool:
        return bool(self.spec.extra_properties)

    def _properties(self, rootfs: rootfs_of.Rootfs) -> list[MountEntry]:
        original = rootfs_of.read_properties(rootfs)
        if not self.spec.extra_properties or (original is None and not rootfs.writable):
            return []
        text = rootfs_of.patched_properties(original or b"", self.spec.extra_properties)
        source = self._staging.write_file("default.prop", text)
        return [MountEntry(source, "default.prop", read_only=True)]

    def _write_network_files(self, rootfs: rootfs_of.Rootfs, lease: Lease) -> None:
        config = IpConfig(address=str(lease.address), gateway=str(lease.gateway), dns=lease.dns)
        DataDirectories(self.spec, self.idmap).write("misc/ethernet/ipconfig.txt", write_ipconfig(config))
        if rootfs.writable:
            try:
                rootfs_of.write_resolv_conf(rootfs.path, lease.dns)
            except OSError as error:
                self.notes.append(f"the rootfs keeps its own resolv.conf: {error.strerror}")

    async def _write_config(
        self,
        rootfs: rootfs_of.Rootfs,
        mounts: list[MountEntry],
        nodes: list[DeviceNode],
        network: NetworkInterface | None,
        facts: HostFacts,
        bindtab: list[str],
    ) -> None:
        spec = self.spec
        if not facts.nice_limit:
            self.notes.append("no CAP_SYS_RESOURCE: Android's processes keep their nice limit")
        if not facts.layout:
            self.notes.append("no control group for devices: file modes alone guard them")
        fifo = f"{self._staging.path}/started"
        config = LxcConfig(
            rootfs=rootfs.path,
            init=self.init,
            log_file=spec.engine_log,
            console_log=spec.console_log,
            environment=self._environment(rootfs),
            idmap=self.idmap,
            mounts=tuple(mounts),
            network=network,
            share_network=spec.network.mode == "host",
            devices=device_rules(nodes),
            cgroup_layout=facts.layout,
            monitor_cgroup=self._cgroup("monitor"),
            payload_cgroup=self._cgroup("payload"),
            nice_limit=facts.nice_limit,
            seccomp_profile=facts.seccomp_profile,
            start_hook=f"/bin/sh -c 'echo $LXC_PID > {fifo}' started",
            raw=tuple(("lxc.mount.entry", line) for line in bindtab),
        )
        text = config.render()
        directory = f"{self.lxcpath}/{spec.instance}"
        os.makedirs(self.lxcpath, mode=0o711, exist_ok=True)
        # An old one may be from Anbox itself, or of a start that was killed before its journal was.
        self.journal.record("directory", path=self.lxcpath)
        self.journal.record("directory", path=directory)
        self.journal.record("file", path=f"{directory}/config")
        self.journal.record("lxc_lock_file", lxcpath=self.lxcpath, name=spec.instance)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with open(f"{directory}/config", "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)

    def _cgroup(self, what: str) -> str:
        return f"anbox.{what}.{self.key}"

    def _environment(self, rootfs: rootfs_of.Rootfs) -> Mapping[str, str]:
        base = {"PATH": ANDROID_PATH if rootfs.android else LINUX_PATH}
        if self.spec.rootfs == HOST_ROOTFS:
            base |= rootfs_of.guest_environment()
        return {**base, **self.spec.environment}

    # -- start --

    def start(self) -> Deferred[None]:
        """Start the container's init; fires when LXC says that it runs."""
        return ensureDeferred(self._start())

    async def _start(self) -> None:
        spec = self.spec
        lxc_start = find_tool("lxc-start")
        if lxc_start is None:
            raise DiagnosedError.of(
                "ANBOX-C025", "the tool lxc-start is missing", "", "install it, for example `apt install lxc`"
            )
        for path in (spec.engine_log, spec.console_log):
            _truncate(path)
        token = uuid.uuid4().hex
        # Each before it comes to be. The groups are undone after the process: what it leaves is killed there.
        self.journal.record("lxc_cgroups", names=[self._cgroup("monitor"), self._cgroup("payload")])
        self.journal.record("process", token=token, what=f"lxc-start of {spec.instance}")
        fifo = StartedFifo(self.backend.reactor, f"{self._staging.path}/started")
        process = LxcProcess()
        config = f"{self.lxcpath}/{spec.instance}/config"
        argv = [lxc_start, "-F", "-P", self.lxcpath, "-n", spec.instance, "-f", config, "--", *self.init]
        setpriv = find_tool("setpriv")
        if setpriv is not None:
            argv = [setpriv, "--pdeathsig", "KILL", *argv]
        else:
            self.notes.append("no setpriv: the container outlives a killed manager until the next start")
        try:
            process.spawn(
                self.backend.reactor, argv, {"PATH": clean_path(), "LC_ALL": "C", TOKEN_VARIABLE: token}
            )
            self._process = process
            process.when_exited().addCallback(self._ended)
            # Its Python starts while LXC works.
            gate = self.gate = GuestGate(self.backend.reactor, spec.instance)
            helper = self._helper = HelperProcess(self.backend.reactor, gate)
            helper.spawn(helper_command(PythonFacts.here()), {"PATH": LINUX_PATH, TOKEN_VARIABLE: token})
            pid = await _first(fifo.pid, process.when_exited())
            if isinstance(pid, int):
                process.watch_init(pid)
                await self._wait_until_running()
                await helper.enter(pid)
            if process.exited:
                raise self._explain(process)
            self._running = True
        finally:
            fifo.pid.addErrback(lambda failure: None)
            fifo.close()

    async def _wait_until_running(self) -> None:
        process = self._process
        if process is None or process.exited:
            return
        waiting = self._commands.run(
            [
                "lxc-wait",
                *("-P", self.lxcpath, "-n", self.spec.instance),
                *("-s", "RUNNING", "-t", str(RUNNING_TIMEOUT_S)),
            ],
            timeout=RUNNING_TIMEOUT_S + 5,
        )
        result = await _first(waiting, process.when_exited())
        # When init cannot be executed the tool may hear of it before we hear of lxc-start's end.
        if isinstance(result, Completed) and not result.ok and not await self._within(process, KILL_WAIT_S):
            result.require("ANBOX-C012", "LXC does not say that the container runs")

    def _explain(self, process: LxcProcess) -> DiagnosedError:
        found = explain(_read_lines(self.spec.engine_log), process.exited)
        console = log_tail(self.spec.console_log)
        output = bytes(process.output).decode("utf-8", "replace").splitlines()
        errors = found.errors or tuple(line for line in output if line.strip())
        return DiagnosedError.of(
            found.code, found.what, found.why, found.cure, (*errors[-10:], *console[-10:])
        )

    # -- the end --

    def _ended(self, description: str) -> None:
        self._running = False
        if self.gate is not None:
            self.gate.close()
        waiters, self._exit_waiters = self._exit_waiters, []
        for waiter in waiters:
            waiter.callback(description)

    def when_exited(self) -> Deferred[str]:
        """Fires when lxc-start has ended, and with it init."""
        waiter: Deferred[str] = Deferred(
            lambda d: self._exit_waiters.remove(d) if d in self._exit_waiters else None
        )
        if self._process is not None and self._process.exited:
            waiter.callback(self._process.exited)
        else:
            self._exit_waiters.append(waiter)
        return waiter

    def stop(self, timeout: float) -> Deferred[None]:
        """Ask init to end, and end it by force after ``timeout`` seconds; fires when it is gone."""
        return ensureDeferred(self._stop(timeout))

    async def _stop(self, timeout: float) -> None:
        self._stopping = True
        helper, self._helper = self._helper, None
        if helper is not None:
            # It holds the container's root directory, which could not be unmounted.
            await helper.stop()
        process = self._process
        if process is not None and not process.exited:
            ended = timeout > 0 and self._running and await self._ask(process, timeout)
            if not ended and process.signal_init(signal.SIGKILL):
                ended = await self._within(process, KILL_WAIT_S)
            if not ended and not process.exited:
                process.kill()
                if not await self._within(process, KILL_WAIT_S):
                    raise DiagnosedError.of(
                        "ANBOX-C018", "lxc-start does not end", "it was killed, and is still there"
                    )
        await self._commands.settle()

    async def _ask(self, process: LxcProcess, timeout: float) -> bool:
        """Send SIGTERM, and wait as long as there is hope."""
        proc = self.backend.proc
        if not handles_signal(process.init_pid, signal.SIGTERM, proc) or not process.signal_init(
            signal.SIGTERM
        ):
            return False
        first = min(timeout, RECONSIDER_S)
        if await self._within(process, first):
            return True
        # A process that has only just been started blocks all signals, whatever its program does with them.
        if not handles_signal(process.init_pid, signal.SIGTERM, proc):
            return False
        return timeout > first and await self._within(process, timeout - first)

    async def _within(self, process: LxcProcess, seconds: float) -> bool:
        waiter = process.when_exited().addTimeout(seconds, self.backend.reactor)
        try:
            await waiter
        except DeferredTimeout:
            return False
        return True

    def info(self) -> dict[str, Any]:
        """What is known now."""
        found: dict[str, Any] = {
            "backend": "lxc",
            "isolation": "lxc, " + ("privileged" if not self.idmap else "unprivileged"),
            "rootfs": self.spec.rootfs or self.spec.image,
            "lxcpath": self.lxcpath,
            "engine_log": self.spec.engine_log,
            "console_log": self.spec.console_log,
            "notes": list(self.notes),
        }
        if self._process is not None and self._process.init_pid and not self._process.exited:
            found["pid"] = self._process.init_pid
        if self.idmap:
            found["idmap"] = {
                "uids": [attrs.astuple(each) for each in self.idmap.uids],
                "gids": [attrs.astuple(each) for each in self.idmap.gids],
            }
        if self.lease is not None:
            found |= {
                "address": str(self.lease.address.ip),
                "gateway": str(self.lease.gateway),
                "dns": list(self.lease.dns),
                "bridge": self.lease.bridge,
                "interface": veth_name(self.key),
            }
        return found


def _read_lines(path: str) -> list[str]:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
            return file.read(MAX_LOG_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def _truncate(path: str) -> None:
    """Begin a log file anew; the old one is kept under ``.1``."""
    try:
        os.replace(path, f"{path}.1")
    except FileNotFoundError:
        pass
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640))


def _uncancelled(work: Coroutine[Any, Any, None]) -> Deferred[None]:
    return ensureDeferred(work)


async def _first(*waiting: Deferred[Any]) -> Any:
    """The result of whichever comes first; the others are cancelled."""
    for each in waiting:
        each.addErrback(lambda failure: failure if not failure.check(CancelledError) else None)
    try:
        result = await DeferredList(
            waiting, fireOnOneCallback=True, fireOnOneErrback=True, consumeErrors=True
        )
    finally:
        for each in waiting:
            each.cancel()
    return result[0]
