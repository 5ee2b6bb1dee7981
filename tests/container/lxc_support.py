"""What the tests with real LXC share: a reporting init, a session's socket, and a look at the host."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from anbox_tw.container.commands import Commands
from anbox_tw.container.journal import Journal, UndoContext
from anbox_tw.container.lxc import LxcBackend, LxcContainer, container_key, veth_name
from anbox_tw.container.lxc_undo import add_lxc_kinds
from anbox_tw.container.machine import ContainerMachine, PhaseEvent, State
from anbox_tw.container.network import ContainerNetwork
from anbox_tw.container.spec import BindMount, ContainerSpec
from anbox_tw.container.undo import default_kinds
from tests.support import need_root, need_tool

REPORT = """
import glob, json, os, signal, socket, sys, time

def read(path):
    try:
        return open(path).read()
    except OSError as error:
        return type(error).__name__

def write(path):
    try:
        open(path, "w").write("from inside")
        return "ok"
    except OSError as error:
        return type(error).__name__

ended = []
signal.signal(signal.SIGTERM, lambda *args: ended.append(1))
report = {
    "pid": os.getpid(),
    "uid": os.getuid(),
    "hostname": socket.gethostname(),
    "uid_map": read("/proc/self/uid_map").split(),
    "interfaces": sorted(os.listdir("/sys/class/net")),
    "netns": os.readlink("/proc/self/ns/net"),
    "pidns": os.readlink("/proc/self/ns/pid"),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "tmp": os.listdir("/tmp"),
    "run": os.listdir("/run"),
    "data": write("/data/local/tmp/inside"),
    "sdcard": write("/sdcard/inside"),
    "cache": write("/cache/inside"),
    "usr": write("/usr/anbox-tw-test"),
    "prop": read("/default.prop"),
    "resolv": read("/etc/resolv.conf"),
    "anbox_tw": __import__("anbox_tw").__file__,
    "twisted": bool(__import__("twisted")),
    "dev": sorted(os.listdir("/dev")),
    "disk": write("/dev/anbox-tw-disk"),
    "environ": dict(os.environ),
    "shadow": read("/etc/shadow")[:5],
    "arguments": sys.argv[1:],
}
try:
    os.mknod("/dev/anbox-tw-mem", 0o20600, os.makedev(1, 1))
    open("/dev/anbox-tw-mem", "rb")
    report["mem"] = "open"
except OSError as error:
    report["mem"] = type(error).__name__
if os.environ.get("HOST_PORT"):
    link = socket.create_connection((os.environ["HOST"], int(os.environ["HOST_PORT"])), 10)
    report["local"] = link.getsockname()[0]
    link.close()
print("console line", flush=True)
pipe = socket.socket(socket.AF_UNIX)
pipe.connect("/dev/qemu_pipe")
pipe.sendall(json.dumps(report).encode() + b"\\n")
while not ended:
    time.sleep(0.02)
pipe.sendall(b"terminated\\n")
"""

STATIC_INIT = r"""
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/stat.h>
int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/dev/qemu_pipe"};
    char text[4096], prop[1024] = "";
    int fd = open("/default.prop", O_RDONLY);
    if (fd >= 0) { int got = read(fd, prop, sizeof prop - 1); prop[got > 0 ? got : 0] = 0; close(fd); }
    for (char *c = prop; *c; c++) if (*c == '\n') *c = '|';
    int data = open("/data/local/tmp/inside", O_WRONLY | O_CREAT, 0600);
    int root = open("/new-file", O_WRONLY | O_CREAT, 0600);
    struct stat extra;
    int pipe = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(pipe, (struct sockaddr *)&address, sizeof address)) { perror("connect"); return 9; }
    snprintf(text, sizeof text,
        "{\"pid\": %d, \"name\": \"%s\", \"data\": %s, \"root\": %s, \"prop\": \"%s\", \"extra\": %s}\n",
        (int)getpid(), argv[0], data >= 0 ? "true" : "false", root >= 0 ? "true" : "false", prop,
        stat("/extra", &extra) == 0 ? "true" : "false");
    write(pipe, text, strlen(text));
    for (;;) pause();
}
"""


default_reactor: Any = global_reactor  # its interfaces depend on the platform, which types cannot say


def read(path: str) -> str:
    """A whole file."""
    with open(path) as file:
        return file.read()


class Pipe(Protocol):
    """The session's end of the guest's pipe."""

    factory: Any

    def connectionMade(self) -> None:
        self.factory.made.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.factory.received(data)


class PipeFactory(Factory):
    """Collects the lines that the guest writes."""

    protocol = Pipe

    def __init__(self) -> None:
        self.made: list[Pipe] = []
        self.buffer = b""
        self.lines: list[bytes] = []
        self.waiters: list[Deferred[bytes]] = []

    def received(self, data: bytes) -> None:
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            if self.waiters:
                self.waiters.pop(0).callback(line)
            else:
                self.lines.append(line)

    def line(self) -> Deferred[bytes]:
        waiter: Deferred[bytes] = Deferred()
        if self.lines:
            waiter.callback(self.lines.pop(0))
        else:
            self.waiters.append(waiter)
        return waiter.addTimeout(20, default_reactor)


def run(*argv: str) -> str:
    """Output of a tool, also of one that fails."""
    return subprocess.run(argv, check=False, capture_output=True, text=True).stdout


async def until(machine: ContainerMachine, state: State) -> None:
    """Wait for a state, at most 20 seconds."""
    reached: Deferred[None] = Deferred()

    def look(event: PhaseEvent) -> None:
        if event.state is state and not reached.called:
            reached.callback(None)

    forget = machine.observe(look)
    if machine.state is state and not reached.called:
        reached.callback(None)
    try:
        await reached.addTimeout(20, default_reactor)
    finally:
        forget()


async def soon(condition: Callable[[], bool]) -> bool:
    """Whether something becomes true within five seconds that the kernel tells nobody of."""
    for _ in range(250):
        if condition():
            return True
        await deferLater(default_reactor, 0.02)
    return False


def remove_tree(path: str) -> None:
    """Delete a test's directory, but never through a mount that a failed test has left in it."""
    left = [line.split()[4] for line in read("/proc/self/mountinfo").splitlines() if f" {path}/" in line]
    for target in reversed(left):
        run("umount", "--lazy", target)
    if not any(f" {path}/" in line for line in read("/proc/self/mountinfo").splitlines()):
        shutil.rmtree(path)
    assert not left, f"left mounted: {left}"


def look_at(specs: list[ContainerSpec], bridge: str) -> dict[str, Any]:
    """All of the host that a container of ours could change."""
    unix = [line.split()[7:] for line in read("/proc/net/unix").splitlines()]
    mounts = [line.split()[4] for line in read("/proc/self/mountinfo").splitlines()]
    found: dict[str, Any] = {
        "links": sorted(line.split(":")[1] for line in run("ip", "-o", "link").splitlines()),
        "rules": json.loads(run("nft", "-j", "list", "ruleset") or '{"nftables": []}')["nftables"][1:],
        "mounts": sorted(mount for mount in mounts if mount not in ("/proc/sys/fs/binfmt_misc",)),
        "loops": sorted(line for line in run("losetup", "-a").splitlines() if "android.img" in line),
        "forward": read("/proc/sys/net/ipv4/ip_forward"),
        "bridge": bridge,
        "mtab": os.path.exists("/run/mount"),
    }
    for spec in specs:
        key = container_key(spec)
        found[spec.instance] = {
            "groups": glob.glob(f"/sys/fs/cgroup/anbox.*.{key}")
            + glob.glob(f"/sys/fs/cgroup/*/anbox.*.{key}"),
            "unix": sorted(path[0] for path in unix if path and path[0].startswith(f"@{spec.data_path}")),
            # never recursive: the host's own root may be mounted below
            "run": sorted(glob.glob(f"{spec.run_path}/*")),
            "locks": glob.glob(f"/run/lxc/lock{spec.data_path}/*/.*"),
            "listed": run("lxc-ls", "-P", f"{spec.data_path}/containers", "-1").split(),
            "veth": veth_name(key) in run("ip", "-o", "link"),
        }
    return found


class LxcCase(TestCase):
    """A test with a manager's parts, run for real."""

    timeout = 90
    bridge = "anboxt0"

    def setUp(self) -> None:
        need_root()
        for tool in ("lxc-start", "nft", "ip"):
            need_tool(tool)
        # Not in trial's own directory: an unprivileged container's root has to get to the rootfs in it.
        self.directory = tempfile.mkdtemp(prefix="anbox-lxc-test")
        os.chmod(self.directory, 0o711)
        self.addCleanup(remove_tree, self.directory)
        self.init = f"{self.directory}/init.py"
        with open(self.init, "w") as file:
            file.write(REPORT)
        os.chmod(self.init, 0o644)
        self.network = ContainerNetwork(bridge=self.bridge, run_directory=f"{self.directory}/net")
        self.backend = LxcBackend(default_reactor, network=self.network)
        self.machines: list[ContainerMachine] = []

    async def session(self, name: str = "default", mode: int = 0o660) -> tuple[str, PipeFactory]:
        """A socket like the session's, in a directory of its own."""
        path = f"{self.directory}/{name}.sockets"
        os.mkdir(path, 0o700)
        factory = PipeFactory()
        port: Any = default_reactor.listenUNIX(f"{path}/qemu_pipe", factory, mode=mode)

        async def close() -> None:
            for each in factory.made:
                transport: Any = each.transport
                if transport is not None:
                    transport.abortConnection()
            await port.stopListening()

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))
        return f"{path}/qemu_pipe", factory

    def spec(self, socket: str | None, **more: Any) -> ContainerSpec:
        instance = more.setdefault("instance", "default")
        more.setdefault("init", (sys.executable, self.init))
        more.setdefault("owner_uid", 0)
        more.setdefault("owner_gid", 0)
        if socket is not None:
            more.setdefault("bind_mounts", (BindMount(socket, "dev/qemu_pipe"),))
        base = f"{self.directory}/{instance}"
        return ContainerSpec(data_path=f"{base}/data", run_path=f"{base}/run", backend="lxc", **more)

    def machine(self, spec: ContainerSpec) -> ContainerMachine:
        context = UndoContext(default_reactor, Commands(default_reactor))
        journal = Journal(spec.journal_path, context, add_lxc_kinds(default_kinds()))
        journal.open()
        machine = ContainerMachine(default_reactor, self.backend, spec, journal)
        self.machines.append(machine)
        self.addCleanup(journal.close)
        self.addCleanup(machine.stop)
        return machine

    def container(self, machine: ContainerMachine) -> LxcContainer:
        container = machine._core.container
        assert isinstance(container, LxcContainer)
        return container

    def static_init(self, *names: str) -> str:
        """Build a directory with a static program under each of the names; its path."""
        compiler = need_tool("gcc")
        tree = f"{self.directory}/tree"
        for name in ("dev", "proc", "sys", "data", "cache", "sdcard", "system"):
            os.makedirs(f"{tree}/{name}", exist_ok=True)
        source = f"{self.directory}/init.c"
        with open(source, "w") as file:
            file.write(STATIC_INIT)
        for name in names:
            subprocess.run([compiler, "-static", "-O1", "-w", "-o", f"{tree}/{name}", source], check=True)
        return tree

    def squashfs(self, tree: str) -> str:
        need_tool("mksquashfs")
        path = f"{self.directory}/android.img"
        subprocess.run(["mksquashfs", tree, path, "-quiet", "-no-progress", "-all-root"], check=True)
        return path
