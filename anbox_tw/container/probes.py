"""What the host has of what containers need: asked without changing it.

What the lxc backend cannot do without it asks itself (`anbox_tw.container.lxc_probes`); here is what makes the
difference between an Android image that starts and one that does not.

Each check is one coroutine function that gives a `Finding`. `CHECKS` says which backend cannot run without it
and which merely does less. A backend runs the required ones before each start; ``anbox doctor`` runs
all.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import pwd
import re
import shutil
import stat
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, ensureDeferred

from anbox_tw.container.commands import Commands, find_tool
from anbox_tw.container.diagnosis import DiagnosedError, Probe
from anbox_tw.container.process_plan import PythonFacts, list_root, trial_plan
from anbox_tw.network.paths import RuntimePaths

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "HostView",
    "helper_command",
    "launcher_command",
    "run_checks",
    "trial_namespaces",
]

TRIAL_TIMEOUT_S = 10.0  # a trial takes a tenth of a second
MIN_FREE_BYTES = 256 * 1024 * 1024  # an instance's first data is some kilobytes, what is pushed to it is not
MIN_SUBORDINATE_IDS = 65536  # what newuidmap's own configuration gives to a user

# The package's parent comes before other installed packages, and behind the standard library.
_BOOTSTRAP = (
    "import sys; p = sys.path; "
    "p.insert(next((i for i, e in enumerate(p) if e.endswith('-packages')), len(p)), sys.argv[1]); "
    "from anbox_tw.container.{module} import main; main()"
)


def launcher_command(python: PythonFacts) -> list[str]:
    """The command line of the process backend's launcher."""
    return _command(python, "_launch")


def helper_command(python: PythonFacts) -> list[str]:
    """The command line of the helper that opens sockets in a container."""
    return _command(python, "guest_sockets._helper")


def _command(python: PythonFacts, module: str) -> list[str]:
    return [python.executable, "-I", "-c", _BOOTSTRAP.format(module=module), os.path.dirname(python.ours)]


@attrs.frozen
class HostView:
    """Where the checks look.

    Attributes:
        commands: runs tools.
        runtime_dir: the runtime directory, or ``None`` where the environment names none.
        data_path: the data path of the instance that is to run, or ``None``.
        environment: of the user.
        uid: effective uid.
        python: where Python and our package are.
        proc: where procfs is.
        sys: where sysfs is.
        dev: where device nodes are.
        etc: where the host's configuration is.
    """

    commands: Commands
    runtime_dir: str | None = None
    data_path: str | None = None
    environment: Mapping[str, str] = attrs.field(factory=lambda: os.environ)
    uid: int = attrs.field(factory=os.geteuid)
    python: PythonFacts = attrs.field(factory=PythonFacts.here)
    proc: str = "/proc"
    sys: str = "/sys"
    dev: str = "/dev"
    etc: str = "/etc"

    def read(self, path: str, limit: int = 65536) -> str | None:
        """The text of a small file of the kernel's or the host's, or ``None``."""
        try:
            with open(path, "rb") as file:
                return file.read(limit).decode("utf-8", "replace")
        except OSError:
            return None

    def sysctl(self, name: str) -> str | None:
        """A kernel parameter, or ``None``."""
        text = self.read(f"{self.proc}/sys/{name.replace('.', '/')}")
        return None if text is None else text.strip()

    def filesystems(self) -> set[str]:
        """The file systems that the kernel has loaded."""
        return {
            line.split()[-1] for line in (self.read(f"{self.proc}/filesystems") or "").splitlines() if line
        }

    def tool(self, name: str) -> str | None:
        """Path of a tool, or ``None``."""
        return find_tool(name, self.environment.get("PATH", ""))

    def exists(self, path: str) -> bool:
        """Whether a path is there."""
        return os.path.exists(path)

    def accessible(self, path: str, mode: int) -> bool:
        """Whether we may access a path."""
        return os.access(path, mode)


@attrs.frozen
class Finding:
    """What a check found.

    Attributes:
        ok: it is there and works.
        detail: what was found.
        cure: what to do when it is not ok.
    """

    ok: bool
    detail: str
    cure: str = ""


@attrs.frozen
class Check:
    """One check.

    Attributes:
        name: what is looked at.
        run: does it.
        required_by: backends that cannot run without it.
        used_by: backends that do less without it.
        of_instance: it looks at what each instance names for itself, so a start finds it out anyway.
    """

    name: str
    run: Callable[[HostView], Awaitable[Finding]]
    required_by: frozenset[str] = frozenset()
    used_by: frozenset[str] = frozenset()
    of_instance: bool = False


# -- both backends --


async def _python(host: HostView) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        sys.version_info >= (3, 11),
        f"{version}, Twisted {importlib.metadata.version('twisted')}",
        "use Python 3.11 or newer",
    )


def _usable_directory(path: str) -> str:
    """Why a directory cannot be used or made, or an empty string."""
    parent = path
    while not os.path.lexists(parent) and parent != "/":
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        return f"{parent} is not a directory"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"{parent} cannot be written by uid {os.geteuid()}"
    return ""


async def _runtime_directory(host: HostView) -> Finding:
    path = host.runtime_dir or host.environment.get("XDG_RUNTIME_DIR")
    if not path:
        return Finding(True, "XDG_RUNTIME_DIR is not set; a private directory is made instead")
    why = _usable_directory(path)
    if why:
        return Finding(False, why, "set XDG_RUNTIME_DIR or --runtime-dir to a directory of your own")
    return Finding(True, path)


def _free_bytes(path: str) -> int:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


async def _data_path(host: HostView) -> Finding:
    path = host.data_path
    if path is None:
        path = RuntimePaths("/").data_path(privileged=host.uid == 0, environ=host.environment)
    why = _usable_directory(path)
    if why:
        return Finding(False, why, "choose a writable directory with --data-path")
    free = _free_bytes(path)
    if free < MIN_FREE_BYTES:
        return Finding(
            False, f"{path}: {free >> 20} MiB free", "free some space, or choose another --data-path"
        )
    return Finding(True, f"{path}, {free >> 20} MiB free")


async def _adb(host: HostView) -> Finding:
    if host.tool("adb") is None:
        return Finding(
            False, "not installed", "`apt install adb`, or use `anbox shell` and `anbox adb`, which need none"
        )
    result = await host.commands.run(["adb", "version"], timeout=TRIAL_TIMEOUT_S)
    lines = result.stdout.decode("utf-8", "replace").splitlines()
    return Finding(result.ok, ", ".join(lines[:2])[:200] or result.error_text, "reinstall adb")


# -- process backend --


async def _kernel(host: HostView) -> Finding:
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    return Finding(
        version >= (5, 12), f"Linux {release}", "namespaced containers need Linux 5.12 (mount_setattr)"
    )


def _namespace_cure(host: HostView) -> str:
    """Why this kernel refuses, as far as its parameters tell, and what to do."""
    if host.sysctl("user.max_user_namespaces") == "0":
        return "`sysctl user.max_user_namespaces=15000` as root"
    if host.uid != 0 and host.sysctl("kernel.unprivileged_userns_clone") == "0":
        return "`sysctl kernel.unprivileged_userns_clone=1` as root"
    if host.uid != 0 and host.sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor restricts user namespaces (Ubuntu 23.10 and newer): allow them to this Python with a profile, "
            "or `sysctl kernel.apparmor_restrict_unprivileged_userns=0` as root"
        )
    return (
        "in Docker, run with `--privileged`, or with `--security-opt seccomp=unconfined --cap-add SYS_ADMIN`"
    )


async def trial_namespaces(host: HostView) -> dict[str, Any]:
    """Build a whole container of the process backend with an init that ends at once.

    Returns:
        The launcher's last event: ``started`` with what it could have, or ``failed``.
    """
    plan = trial_plan(host.python, list_root("/"), host.uid, os.getegid())
    result = await host.commands.run(
        launcher_command(host.python), timeout=TRIAL_TIMEOUT_S, data=json.dumps(plan).encode() + b"\n"
    )
    for line in result.stdout.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") in ("started", "failed"):
            return event
    return {"event": "failed", "what": "the launcher said nothing", "why": result.error_text}


async def _namespaces(host: HostView) -> Finding:
    event = await trial_namespaces(host)
    if event["event"] != "started":
        return Finding(
            False,
            f"refused, containers run without isolation: {event['why'] or event['what']}",
            _namespace_cure(host),
        )
    refused = "".join(f"; no {name}: {why}" for name, why in event["refused"].items())
    notes = "".join(f"; {note}" for note in event["notes"])
    return Finding(
        not event["refused"], ", ".join(event["namespaces"]) + refused + notes, _namespace_cure(host)
    )


async def _slirp4netns(host: HostView) -> Finding:
    if host.tool("slirp4netns") is None:
        return Finding(False, "not installed: containers have loopback only", "`apt install slirp4netns`")
    if not host.accessible(f"{host.dev}/net/tun", os.R_OK | os.W_OK):
        there = host.exists(f"{host.dev}/net/tun")
        cure = f"`chmod 0666 {host.dev}/net/tun` as root" if there else "`modprobe tun` as root"
        return Finding(False, f"{host.dev}/net/tun cannot be used: containers have loopback only", cure)
    return Finding(True, "gives containers an outbound network")


# -- lxc backend --


async def _trial_link(host: HostView, what: str, *arguments: str) -> Finding:
    """Make an interface in a network namespace that ends with the trial."""
    if host.tool("ip") is None:
        return Finding(False, "the tool ip is missing", "`apt install iproute2`")
    unshare = ["unshare", "--net"] if host.uid == 0 else ["unshare", "--net", "--user", "--map-root-user"]
    result = await host.commands.run([*unshare, "ip", "link", "add", *arguments], timeout=TRIAL_TIMEOUT_S)
    return Finding(result.ok, "works" if result.ok else result.error_text, f"`modprobe {what}` as root")


async def _bridge(host: HostView) -> Finding:
    return await _trial_link(host, "bridge", "probe0", "type", "bridge")


async def _veth(host: HostView) -> Finding:
    return await _trial_link(host, "veth", "probe0", "type", "veth", "peer", "name", "probe1")


async def _nft(host: HostView) -> Finding:
    if host.tool("nft") is None:
        return Finding(
            False, "not installed: containers do not reach beyond the host", "`apt install nftables`"
        )
    unshare = ["unshare", "--net"] if host.uid == 0 else ["unshare", "--net", "--user", "--map-root-user"]
    script = "add table inet probe; add chain inet probe c { type nat hook postrouting priority 100; }"
    result = await host.commands.run([*unshare, "nft", script], timeout=TRIAL_TIMEOUT_S)
    return Finding(
        result.ok, "works" if result.ok else result.error_text, "`modprobe nf_tables nft_chain_nat` as root"
    )


async def _squashfs(host: HostView) -> Finding:
    if "squashfs" in host.filesystems():
        return Finding(True, "in the kernel")
    return Finding(
        False, "not in the kernel, or not loaded", "`modprobe squashfs` as root, or use --force-squashfuse"
    )


async def _fuse(host: HostView) -> Finding:
    device = f"{host.dev}/fuse"
    if not host.accessible(device, os.R_OK | os.W_OK):
        return Finding(False, f"{device} cannot be used: no squashfuse", "`modprobe fuse` as root")
    return Finding(True, device)


def _subordinate_ids(text: str | None, names: set[str]) -> int:
    """How many ids a file like ``/etc/subuid`` gives to the user at most in one range."""
    most = 0
    for line in (text or "").splitlines():
        fields = line.split(":")
        if len(fields) == 3 and fields[0] in names and fields[2].strip().isdecimal():
            most = max(most, int(fields[2]))
    return most


async def _id_map(host: HostView) -> Finding:
    if host.uid == 0:
        return Finding(True, "root writes it itself")
    if host.tool("newuidmap") is None or host.tool("newgidmap") is None:
        return Finding(False, "newuidmap is missing", "`apt install uidmap`")
    names = {str(host.uid)}
    try:
        names.add(pwd.getpwuid(host.uid).pw_name)
    except KeyError:
        pass
    user = min(names, key=str.isdecimal)
    for file in ("subuid", "subgid"):
        if _subordinate_ids(host.read(f"{host.etc}/{file}"), names) < MIN_SUBORDINATE_IDS:
            return Finding(
                False,
                f"{host.etc}/{file} gives {user} no {MIN_SUBORDINATE_IDS} ids",
                f"`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` as root",
            )
    return Finding(True, f"subordinate ids of {user}")


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


async def _binder(host: HostView) -> Finding:
    if host.exists(f"{host.dev}/binderfs/binder-control"):
        return Finding(True, f"binderfs at {host.dev}/binderfs")
    if "binder" in host.filesystems():
        return Finding(True, "binderfs is in the kernel, not mounted yet")
    if _is_device(f"{host.dev}/binder"):
        return Finding(True, f"{host.dev}/binder, for one instance only")
    return Finding(
        False,
        "no binder: Android images cannot run, Linux directories and the host's root can",
        "`modprobe binder_linux devices=binder,hwbinder,vndbinder` as root, or a kernel with CONFIG_ANDROID_BINDERFS",
    )


_ALL = frozenset({"process", "lxc"})
_PROCESS = frozenset({"process"})
_LXC = frozenset({"lxc"})

CHECKS = (
    Check("python", _python, required_by=_ALL),
    Check("runtime directory", _runtime_directory, required_by=_ALL, of_instance=True),
    Check("data path", _data_path, required_by=_ALL, of_instance=True),
    Check("adb", _adb, used_by=_ALL),
    Check("kernel", _kernel, used_by=_PROCESS),
    Check("namespaces", _namespaces, used_by=_PROCESS),
    Check("slirp4netns", _slirp4netns, used_by=_PROCESS),
    Check("bridge", _bridge, used_by=_LXC),
    Check("veth", _veth, used_by=_LXC),
    Check("nft rules", _nft, used_by=_LXC),
    Check("squashfs", _squashfs, used_by=_LXC),
    Check("FUSE", _fuse, used_by=_LXC),
    Check("id map", _id_map, used_by=_LXC),
    Check("binder", _binder, used_by=_LXC),
)


def run_checks(host: HostView, backend: str, *, required_only: bool = False) -> Deferred[list[Probe]]:
    """Run the checks of one backend, one after the other.

    Args:
        host: where to look.
        backend: name of the backend.
        required_only: only those without which no instance can run; they take milliseconds.

    Returns:
        One probe per check, in the order of `CHECKS`. A check that itself fails is a probe that is not ok.
    """
    return ensureDeferred(_run_checks(host, backend, required_only))


async def _run_checks(host: HostView, backend: str, required_only: bool) -> list[Probe]:
    probes = []
    for check in CHECKS:
        required = backend in check.required_by
        if required_only and (not required or check.of_instance):
            continue
        if not required and backend not in check.used_by:
            continue
        try:
            finding = await check.run(host)
        except DiagnosedError as error:
            finding = Finding(False, error.diagnosis.summary(), error.diagnosis.cure)
        except OSError as error:
            finding = Finding(False, str(error))
        cure = "" if finding.ok else finding.cure
        probes.append(Probe(check.name, finding.ok, finding.detail, cure, required))
    return probes
