"""Plans what the launcher of the process backend does: pure, from a spec and facts about the host.

The plan is JSON. Its keys:

``binds``, ``data_binds``, ``caller_binds``, ``devices``
    bind mounts: ``source``, ``target`` (relative), ``writable``, ``optional``, ``code`` of a failure. The
    first are opened with the launcher's rights; the second lie below ``data_path``, where no symbolic
    link is followed; the third are opened with the rights of the user for whom the container runs.
``directories``, ``links``, ``files``
    what is made in the new root: path and mode; path and text; path, content and, if not empty, a path that
    it is bound over.
``owner_is_launcher``
    that user is the one who runs the launcher.
``slirp``
    command that connects the container's network namespace, or null.
``uid``, ``gid``
    the host's ids of the container's 0 and 0.
``id_maps``
    what to write to ``uid_map`` and ``gid_map``: the best first.
``plain``
    what differs when there are no namespaces.
"""

from __future__ import annotations

import os
import posixpath
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

import anbox_tw
from anbox_tw.container.idmap import BASE_ID, ID_COUNT
from anbox_tw.container.spec import HOST_ROOTFS, BindMount, ContainerSpec
from anbox_tw.container.undo import TOKEN_VARIABLE

__all__ = [
    "GUEST_PACKAGES",
    "PythonFacts",
    "RootEntry",
    "list_root",
    "make_plan",
    "trial_plan",
]

HOST_DIRECTORIES = ("bin", "etc", "gnu", "lib", "lib32", "lib64", "libx32", "nix", "sbin", "usr")
"""What of the host's root is shown for the rootfs ``host``: programs and their settings, no data."""

OURS = frozenset({"cache", "data", "dev", "proc", "run", "sdcard", "sys", "tmp"})
"""Top-level names that the container always has of its own."""

GUEST_PACKAGES = "run/anbox-tw/python"
"""Where a rootfs of its own finds our package."""

DIRECTORIES = (
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("dev/pts", 0o755),
    ("dev/shm", 0o1777),  # of the container
    ("dev/input", 0o755),
    ("tmp", 0o1777),
    ("run", 0o755),
    ("mnt", 0o755),
)
HOST_ONLY_DIRECTORIES = (
    # The host's /var is data, not a program; these are what programs expect to be there.
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
)
SLIRP_NAME_SERVER = "10.0.2.3"  # slirp4netns's own, which asks the host's
SLIRP_OPTIONS = ("--configure", "--mtu=65520")
SLIRP_NO_LOOPBACK = "--disable-host-loopback"
"""The guest reaches the network but not what listens on the host's loopback only, unless that is asked for."""

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@attrs.frozen
class RootEntry:
    """One name at the top of a rootfs.

    Attributes:
        name: the name.
        link: text of the symbolic link, if it is one.
    """

    name: str
    link: str | None = None


def list_root(path: str, only: Sequence[str] = ()) -> list[RootEntry]:
    """The names at the top of a rootfs, sorted.

    Args:
        path: the rootfs.
        only: if given, only these.

    Raises:
        OSError: it cannot be read.
    """
    entries = []
    with os.scandir(path) as found:
        for entry in found:
            if only and entry.name not in only:
                continue
            link = os.readlink(entry.path) if entry.is_symlink() else None
            entries.append(RootEntry(entry.name, link))
    return sorted(entries, key=lambda entry: entry.name)


@attrs.frozen
class PythonFacts:
    """Where this Python and our package are, so that the guest runs the very same.

    Attributes:
        executable: the interpreter.
        prefixes: directories of the interpreter and its environment.
        packages: directories on the module path outside of the prefixes that hold installed packages.
        ours: directory of the package ``anbox_tw``.
        home: the user's home directory, which must not be shown as a whole.
    """

    executable: str
    prefixes: tuple[str, ...]
    packages: tuple[str, ...]
    ours: str
    home: str

    @classmethod
    def here(cls) -> PythonFacts:
        """The facts about this process."""
        prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
        # The same by their true names: a pyenv, uv or Nix prefix is often reached through a link.
        prefixes |= {os.path.realpath(prefix) for prefix in prefixes}
        prefixes.add(os.path.dirname(os.path.dirname(os.path.realpath(sys.executable))))
        packages = [
            path
            for path in sys.path
            if path.startswith("/") and path.endswith("-packages") and os.path.isdir(path)
        ]
        return cls(
            executable=sys.executable or "/usr/bin/python3",
            prefixes=tuple(sorted(prefixes - {"/"})),
            packages=tuple(dict.fromkeys(packages)),
            ours=os.path.dirname(os.path.abspath(anbox_tw.__file__)),
            home=os.path.expanduser("~"),
        )

    def directories(self) -> list[str]:
        """What must be seen in the container, shortest paths first, none within another."""
        wanted: list[str] = []
        for prefix in self.prefixes:
            if self.home == prefix or self.home.startswith(prefix + "/"):
                # The prefix is the home itself (`pip install --prefix ~`): its programs only.
                wanted.extend(f"{prefix}/{name}" for name in ("bin", "lib", "lib64", "pyvenv.cfg"))
            else:
                wanted.append(prefix)
        wanted += [*self.packages, self.ours]
        return _outermost(wanted)


def _outermost(paths: Sequence[str]) -> list[str]:
    """The paths without duplicates and without those within another."""
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda p: (p.count("/"), p)):
        if not any(path == other or path.startswith(other + "/") for other in kept):
            kept.append(path)
    return kept


def _ro(source: str, *, optional: bool = True) -> dict[str, Any]:
    return {"source": source, "target": source.lstrip("/"), "optional": optional}


def make_plan(
    spec: ContainerSpec,
    *,
    python: PythonFacts,
    root_entries: Sequence[RootEntry],
    uid: int,
    gid: int,
    token: str,
    isolation: str,
    log_limit: int,
    as_root: bool = False,
    slirp: str | None = None,
    resolv_conf: str = "/etc/resolv.conf",
) -> dict[str, Any]:
    """Make the plan.

    Args:
        spec: what is asked for.
        python: where Python and our package are.
        root_entries: of `list_root`: for the rootfs ``host`` of ``/``, otherwise of the directory.
        uid: the host's uid for the container's root.
        gid: the host's gid for its group.
        token: value of `anbox_tw.container.undo.TOKEN_VARIABLE` for all its processes.
        isolation: ``auto``, ``namespaces`` or ``plain``.
        log_limit: bytes of init's log before it is rotated.
        as_root: we are root, so the container can have more ids than its own root's.
        slirp: path of slirp4netns, if it may be used.
        resolv_conf: what the rootfs's ``/etc/resolv.conf`` is when all links are followed.
    """
    on_host = spec.rootfs == HOST_ROOTFS
    data_binds: list[dict[str, Any]] = []
    binds: list[dict[str, Any]] = []
    links: list[tuple[str, str]] = []
    caller_binds: list[dict[str, Any]] = []
    directories = [*DIRECTORIES, *(HOST_ONLY_DIRECTORIES if on_host else ())]

    for entry in root_entries:
        if entry.name in OURS or (on_host and entry.name not in HOST_DIRECTORIES):
            continue
        if entry.link is not None:
            links.append((entry.name, entry.link))
        elif on_host:
            binds.append(_ro(f"/{entry.name}"))
        else:
            directories = [(path, mode) for path, mode in directories if path.split("/")[0] != entry.name]
            caller_binds.append(
                {"source": f"{spec.rootfs}/{entry.name}", "target": entry.name, "optional": True}
            )
    if on_host:
        shown = [bind["source"] for bind in binds]
        for path in python.directories():
            if not any(f"{path}/".startswith(f"{top}/") for top in shown):
                binds.append(_ro(path))
        python_path = [os.path.dirname(python.ours), *python.packages]
        interpreter = python.executable
    else:
        binds.append({"source": python.ours, "target": f"{GUEST_PACKAGES}/anbox_tw"})
        python_path = [f"/{GUEST_PACKAGES}"]
        interpreter = "/usr/bin/python3"
    for source, target in (
        (spec.data_dir, "data"),
        (f"{spec.data_dir}/media/0", "sdcard"),
        (spec.cache_dir, "cache"),
    ):
        data_binds.append({"source": source, "target": target, "writable": True, "code": "ANBOX-C004"})
    caller_binds += [_caller_bind(mount) for mount in spec.bind_mounts]

    files: list[tuple[str, str, str]] = []
    if spec.extra_properties:
        files.append(("default.prop", "".join(f"{text}\n" for text in spec.extra_properties), ""))
    if spec.network.mode == "auto" and slirp is not None:
        servers = spec.network.dns or (SLIRP_NAME_SERVER,)
        text = "".join(f"nameserver {server}\n" for server in servers)
        if resolv_conf.startswith("/run/"):
            files.append((resolv_conf.lstrip("/"), text, ""))
        else:
            files.append(("run/anbox-tw/resolv.conf", text, resolv_conf.lstrip("/")))
    elif spec.network.mode == "host" and resolv_conf.startswith("/run/"):
        binds.append(_ro(resolv_conf))

    run_root = f"{spec.run_path}/container-root"
    environment = _environment(spec, python_path, interpreter, token, "")
    return {
        "instance": spec.instance,
        "hostname": spec.instance.replace("_", "-"),
        "isolation": isolation,
        "own_network": spec.network.mode != "host",
        "slirp": _slirp_command(spec, slirp),
        "uid": uid,
        "gid": gid,
        "id_maps": _id_maps(uid, gid, as_root=as_root),
        "guard_proc": uid == 0,
        "binds": binds,
        "data_path": spec.data_path,
        "data_binds": data_binds,
        "caller_binds": caller_binds,
        "devices": [{"source": d.path, "target": d.path.lstrip("/"), "optional": True} for d in spec.devices],
        "directories": directories,
        "links": links,
        "files": files,
        "argv": _init(spec, interpreter, "/dev", "/"),
        "environment": environment,
        "directory": "/",
        "log": spec.console_log,
        "log_limit": log_limit,
        "plain": _plain(spec, python, run_root, token),
    }


def trial_plan(python: PythonFacts, root_entries: Sequence[RootEntry], uid: int, gid: int) -> dict[str, Any]:
    """Plan a container that shows whether the kernel allows one: the host's root, and an init that ends at once.

    It has nothing of an instance, so it leaves nothing behind.

    Args:
        python: where Python and our package are.
        root_entries: `list_root` of ``/``.
        uid: our effective uid.
        gid: our effective gid.
    """
    spec = ContainerSpec(data_path="/nonexistent", run_path="/nonexistent", init=("true",))
    plan = make_plan(
        spec,
        python=python,
        root_entries=root_entries,
        uid=uid,
        gid=gid,
        token="trial",  # noqa: S106  # not a secret
        isolation="namespaces",
        log_limit=0,
    )
    return {
        **plan,
        "data_binds": [],
        "log": os.devnull,
        "manager": os.getpid(),
        "owner_is_launcher": True,
        "trial": True,
    }


def _slirp_command(spec: ContainerSpec, slirp: str | None) -> list[str] | None:
    if slirp is None or spec.network.mode != "auto":
        return None
    return [slirp, *SLIRP_OPTIONS, *([] if spec.network.host_loopback else [SLIRP_NO_LOOPBACK])]


def _id_maps(uid: int, gid: int, *, as_root: bool) -> list[tuple[str, str]]:
    """The id maps to try.

    Root gives the container Android's and Linux's usual ids, as LXC's map does, so that both backends can use
    the same data. The host's own ids are not among them: what those own, the container's root does not.
    """
    single = (f"0 {uid} 1\n", f"0 {gid} 1\n")
    others = range(BASE_ID + 1, BASE_ID + ID_COUNT)
    if not as_root or uid in others or gid in others:
        return [single]
    rest = f"1 {others.start} {len(others)}\n"
    return [(single[0] + rest, single[1] + rest), single]


def _caller_bind(mount: BindMount) -> dict[str, Any]:
    return {"source": mount.source, "target": mount.target, "writable": not mount.read_only}


def _init(spec: ContainerSpec, interpreter: str, dev: str, root: str) -> list[str]:
    return list(spec.init) or [
        *(interpreter, "-m", "anbox_tw.guest", "--services"),
        *("--dev", dev, "--root", root),
    ]


def _environment(
    spec: ContainerSpec, python_path: Sequence[str], interpreter: str, token: str, root: str
) -> dict[str, str]:
    inherited: Mapping[str, str] = {
        TOKEN_VARIABLE: token,  # the first: a limited read of /proc/<pid>/environ finds it
        "PATH": f"{SYSTEM_PATH}:{posixpath.dirname(interpreter)}",
        "HOME": f"{root}/data",
        "LANG": "C.UTF-8",
        "TMPDIR": f"{root}/tmp",  # noqa: S108  # of the container
        "ANDROID_DATA": f"{root}/data",
        "EXTERNAL_STORAGE": f"{root}/sdcard",
        "ANBOX_INSTANCE": spec.instance,
        "ANBOX_DEV": f"{root}/dev",
        "ANBOX_ROOT": root or "/",
        "PYTHONPATH": ":".join(python_path),
        "PYTHONDONTWRITEBYTECODE": "1",  # where the package lies is read only
        "PYTHONUNBUFFERED": "1",  # what it prints is in the log when it dies
    }
    return {**inherited, **spec.environment, TOKEN_VARIABLE: token}


def _plain(spec: ContainerSpec, python: PythonFacts, root: str, token: str) -> dict[str, Any]:
    """What stands in for the container's root when there are no namespaces: a directory of links."""
    python_path = [os.path.dirname(python.ours), *python.packages]
    linked = {mount.target for mount in spec.bind_mounts}
    return {
        "root": root,
        "directories": [
            d for d in (("dev", 0o755), ("dev/input", 0o755), ("tmp", 0o1777)) if d[0] not in linked
        ],
        "links": [
            ("data", spec.data_dir),
            ("sdcard", f"{spec.data_dir}/media/0"),
            ("cache", spec.cache_dir),
            *((mount.target, mount.source) for mount in spec.bind_mounts),
        ],
        "sources": [mount.source for mount in spec.bind_mounts],
        "writable": [
            *(spec.data_dir, spec.cache_dir, f"{root}/tmp"),  # noqa: S108  # of the container
            *(mount.source for mount in spec.bind_mounts if not mount.read_only),
        ],
        "argv": _init(spec, python.executable, f"{root}/dev", root),
        "environment": _environment(spec, python_path, python.executable, token, root),
        "directory": spec.data_dir,
    }
