"""The launcher of the process backend: a small process between the manager and the container.

Standard library only; it starts in a few hundredths of a second. The manager runs it with a plan (one
line of JSON, see `anbox_tw.container.process_plan`) on standard input and reads what happens, JSON
again, from its standard output.

Processes, outermost first::

    manager
      launcher        this module: supervises, writes the log; in the host's namespaces
        (entry)       enters new namespaces and ends once it has forked
        pid 1         of the container: builds the root, reaps, hands signals on
          init        what the plan says, by default the guest

The entry process ends so that pid 1 becomes the launcher's own child (the launcher is a child
subreaper) and its status can be waited for.

Standard input stays open for as long as the container may live. After the plan each byte on it is an
order: ``T`` asks init to end (SIGTERM), ``K`` kills. The end of the file means that the manager is
gone, in whatever way: then the container is killed. Should the launcher itself be killed, pid 1 gets
SIGKILL from the kernel (PR_SET_PDEATHSIG) and with pid 1 its whole pid namespace ends.

Without namespaces init is the launcher's child; descendants that detach themselves become the
launcher's children too, and are killed with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from anbox_tw.container import _landlock
from anbox_tw.container import _namespaces as namespaces
from anbox_tw.container import _syscalls as sys_
from anbox_tw.container._logfile import LogFile
from anbox_tw.container.guest_sockets import _helper

__all__ = ["main"]

MAX_PLAN_BYTES = 1024 * 1024  # 256 bind mounts with two paths of PATH_MAX are 2 MB at worst, 50 kB as a rule
MAX_EVENT_BYTES = 64 * 1024  # of one line from the container's side during set-up
KILL_WAIT_S = 5.0  # for the last processes of a container without namespaces
LOG_CHUNK_BYTES = 64 * 1024
DRAIN_LIMIT_BYTES = 1024 * 1024  # of output left in the pipe when init has ended
GATE_FD = 3  # of the control socket of the helper that opens sockets in the container
NETWORK_WAIT_S = 5.0  # until slirp4netns says that it is ready; it takes some milliseconds
MAX_DESCRIPTORS = 256  # the launcher has some twenty
NETWORK_LOG_BYTES = 65536  # of what slirp4netns says
SLIRP_ADDRESS = "10.0.2.100"  # what slirp4netns gives to its only client
# What a container without namespaces may write to in /dev: no disk, whoever runs it.
PLAIN_DEVICES = (
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"),
    *("/dev/tty", "/dev/ptmx", "/dev/pts", "/dev/shm"),  # noqa: S108  # of the host, as it is
)
SIGNALS_RESET = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them, and exec hands that on


def tell(**event: Any) -> None:
    """Write one event for the manager; if it is gone, our standard input will say so."""
    data = json.dumps(event).encode() + b"\n"
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        pass


def read_plan() -> tuple[dict[str, Any], bytes]:
    """The plan, and what came behind it."""
    data = b""
    while b"\n" not in data:
        more = os.read(0, 65536)
        if not more or len(data) > MAX_PLAN_BYTES:
            sys.exit(2)
        data += more
    line, _, rest = data.partition(b"\n")
    plan = json.loads(line)
    assert isinstance(plan, dict)
    return plan, rest


# -- the container's side ---------------------------------------------------------------------------
# Everything up to "the launcher's side" runs in forked children that end in execve or _exit, most of
# them behind a pivot_root: no coverage data can come out of there.


def _child_exec(plan: dict[str, Any], output: int, errors: int) -> NoReturn:  # pragma: no cover
    """Become init. What keeps us from it goes to ``errors``, which exec closes otherwise."""
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor, source in ((0, null), (1, output), (2, output)):
            os.dup2(source, descriptor)
        for number in SIGNALS_RESET:
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.umask(0o022)
        os.chdir(plan["directory"])
        os.execvpe(plan["argv"][0], plan["argv"], plan["environment"])  # noqa: S606  # a shell is not wanted
    except BaseException as error:
        why = error.strerror if isinstance(error, OSError) else repr(error)
        os.write(errors, (why or str(error)).encode()[:4096])
    os._exit(127)


def _start_init(plan: dict[str, Any], output: int) -> int:
    """Fork and exec init; returns its pid.

    Raises:
        namespaces.Failed: it cannot be executed.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        _child_exec(plan, output, writing)
    os.close(writing)
    with open(reading, "rb") as file:
        error = file.read(4096)
    if error:
        os.waitpid(pid, 0)
        raise namespaces.Failed(
            "ANBOX-C013", f"init cannot be executed: {plan['argv'][0]}", error.decode("utf-8", "replace")
        )
    return pid


def _status(status: int) -> dict[str, int]:
    code = os.waitstatus_to_exitcode(status)
    return {"status": code} if code >= 0 else {"signal": -code}


def _pid_one(plan: dict[str, Any], got: list[str], pipes: _Pipes) -> NoReturn:  # pragma: no cover
    """Be pid 1 of the container."""

    def say(**event: Any) -> None:
        os.write(pipes.events[1], json.dumps(event).encode() + b"\n")

    try:
        # Only once the entry process is gone is the launcher our parent.
        os.close(pipes.entry[1])
        os.read(pipes.entry[0], 1)
        sys_.set_name("anbox-pid1")
        notes = namespaces.build_root(plan, got)
        namespaces.finish_privileges("net" in got)
        # The uid has changed for the last time, and that would have cleared it.
        sys_.set_parent_death_signal(signal.SIGKILL)
        os.close(pipes.go[1])
        say(event="built", notes=notes)
        if os.read(pipes.go[0], 1) != b"g":
            os._exit(1)  # the launcher died, perhaps before we asked to be told
        init = 0

        def hand_on(number: int, frame: Any) -> None:
            if init:
                os.kill(init, number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, hand_on)
        init = _start_init(plan, pipes.output[1])
        sys_.set_dumpable(False)
        say(event="started")
        for descriptor in (0, 1, 2, pipes.output[1], pipes.output[0], pipes.events[0]):
            os.close(descriptor)
        while True:
            pid, status = os.wait()
            if pid == init:
                say(event="exited", **_status(status))
                os._exit(0)
    except namespaces.Refused as error:
        say(event="refused", why=str(error))
    except namespaces.Failed as error:
        say(event="failed", code=error.code, what=error.what, why=error.why, cure=error.cure)
    except BaseException as error:
        say(
            event="failed",
            code="ANBOX-C024",
            what="the container's root cannot be built",
            why=repr(error),
            cure="",
        )
    os._exit(1)


def _entry(plan: dict[str, Any], pipes: _Pipes) -> NoReturn:  # pragma: no cover
    """Enter the namespaces, fork pid 1, and end."""
    signal.set_wakeup_fd(-1)  # it is the launcher's
    try:
        got, refused = namespaces.enter_namespaces(plan["own_network"])
        message: dict[str, Any] = {"event": "unshared", "namespaces": got, "refused": refused}
        os.write(pipes.events[1], json.dumps(message).encode() + b"\n")
        if os.read(pipes.go[0], 1) == b"g":
            pid = os.fork()
            if pid == 0:
                _pid_one(plan, got, pipes)
            os.write(pipes.events[1], json.dumps({"event": "forked", "pid": pid}).encode() + b"\n")
    except namespaces.Refused as error:
        os.write(pipes.events[1], json.dumps({"event": "refused", "why": str(error)}).encode() + b"\n")
    except BaseException as error:
        why = f"{type(error).__name__}: {error}"
        os.write(pipes.events[1], json.dumps({"event": "refused", "why": why}).encode() + b"\n")
    os._exit(0)


# -- the launcher's side ----------------------------------------------------------------------------


class _Pipes:
    """What connects the launcher with the container's side."""

    def __init__(self, output: tuple[int, int]) -> None:
        self.events = os.pipe()
        self.go = os.pipe()
        self.entry = os.pipe()
        self.output = output

    def close(self) -> None:
        for pair in (self.events, self.go, self.entry):
            for descriptor in pair:
                try:
                    os.close(descriptor)
                except OSError:
                    pass


class Launcher:
    """One container, from the plan to its last process."""

    def __init__(self, plan: dict[str, Any], orders: bytes) -> None:
        self.plan = plan
        self.orders = orders
        self.output = os.pipe()
        self.log = LogFile(plan["log"], plan["log_limit"])
        self.child = 0  # pid 1 of the container, or init itself without namespaces
        self.events = -1
        self.buffer = b""
        self.namespaced = False
        self.killed = False
        self.wakeup = os.pipe()
        self.result: dict[str, Any] | None = None
        # The manager gives the control socket of a helper on descriptor 3; nobody else shall have it.
        self.gate = socket.socket(fileno=GATE_FD) if plan.get("gate") else None
        if self.gate is not None:
            self.gate.set_inheritable(False)

    def run(self) -> None:
        """Run the container to its end."""
        for descriptor in self.wakeup:
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self.wakeup[1], warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: None)
        try:
            self._start()
        except namespaces.Failed as error:
            self._kill_all()
            tell(event="failed", code=error.code, what=error.what, why=error.why, cure=error.cure)
            return
        self._supervise()

    def _start(self) -> None:
        wanted = self.plan["isolation"]
        why = ""
        if wanted in ("auto", "namespaces"):
            try:
                self._start_namespaced()
                return
            except namespaces.Refused as error:
                why = str(error)
                self._kill_all()
            if wanted == "namespaces":
                raise namespaces.Failed("ANBOX-C010", "the container cannot have namespaces", why)
        self._start_plain(why)

    # -- with namespaces --

    def _start_namespaced(self) -> None:
        pipes = _Pipes(self.output)
        try:
            entry = os.fork()
            if entry == 0:  # pragma: no cover
                if self.gate is not None:
                    self.gate.close()
                _entry(self.plan, pipes)
            for descriptor in (pipes.events[1], pipes.go[0], *pipes.entry):
                os.close(descriptor)
            self.events = pipes.events[0]
            unshared = self._expect("unshared")
            self._write_id_maps(entry)
            os.write(pipes.go[1], b"g")
            self.child = self._expect("forked")["pid"]
            os.waitpid(entry, 0)
            notes = self._expect("built")["notes"]
            gate = self._open_gate(inside=True)
            address, note = self._connect(unshared["namespaces"])
            os.write(pipes.go[1], b"g")
            self._expect("started")
        except BaseException:
            self.events = -1
            pipes.close()
            raise
        self.namespaced = True
        tell(
            event="started",
            isolation="namespaces",
            pid=self.child,
            namespaces=unshared["namespaces"],
            refused=unshared["refused"],
            notes=[*notes, *note],
            address=address,
            gate=gate,
        )

    def _connect(self, got: list[str]) -> tuple[str | None, list[str]]:
        """Give the container a way out through slirp4netns; its address, and what there is to say."""
        slirp = self.plan["slirp"]
        if slirp is None or "net" not in got:
            return None, []
        reading, writing = os.pipe()
        # What it says is of interest only when it fails, and must not fill the memory after that.
        errors = os.memfd_create("slirp4netns", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(errors, NETWORK_LOG_BYTES)
        fcntl.fcntl(errors, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        launcher = os.getpid()
        pid = os.fork()
        if pid == 0:  # pragma: no cover
            try:
                signal.set_wakeup_fd(-1)
                sys_.set_parent_death_signal(signal.SIGKILL)
                if os.getppid() != launcher:
                    os._exit(127)
                null = os.open("/dev/null", os.O_RDWR)
                for descriptor, source in ((0, null), (1, errors), (2, errors)):
                    os.dup2(source, descriptor)
                os.set_inheritable(writing, True)
                command = [*slirp, f"--ready-fd={writing}", str(self.child), "tap0"]
                os.execv(command[0], command)  # noqa: S606  # a shell is not wanted
            finally:
                os._exit(127)
        os.close(writing)
        ready = select.select([reading], [], [], NETWORK_WAIT_S)[0] and os.read(reading, 1) == b"1"
        said = os.pread(errors, NETWORK_LOG_BYTES, 0).rstrip(b"\0").decode("utf-8", "replace").split("\n")
        os.close(reading)
        os.close(errors)
        if ready:
            return SLIRP_ADDRESS, []
        _kill_quietly(pid)
        why = " ".join(said).strip()[:200] or "it ended without a word"
        return None, [f"no network beyond the container: slirp4netns failed: {why}"]

    def _open_gate(self, *, inside: bool) -> bool:
        """Fork the helper that opens sockets in the container, while its first process can still be looked at."""
        gate, self.gate = self.gate, None
        if gate is None:
            return False
        launcher = os.getpid()
        plan = self.plan
        # It must be inside before the container's first process goes on, and hides from those without rights over it.
        reading, writing = os.pipe()
        if os.fork():
            gate.close()
            os.close(writing)
            os.read(reading, 1)
            os.close(reading)
            return True
        try:  # pragma: no cover
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            null = os.open("/dev/null", os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            kept = (gate.fileno(), writing)
            for descriptor in range(3, MAX_DESCRIPTORS):
                if descriptor not in kept:
                    _close_quietly(descriptor)
            plain = plan["plain"]
            if not inside:
                _become_plain(plain, plan)
            _helper.serve(
                gate, self.child, parent=launcher, inside=inside, prefix=plain["root"], entered=writing
            )
        finally:
            os._exit(0)

    def _expect(self, wanted: str) -> dict[str, Any]:
        """Wait for one event from the container's side, and for orders from the manager meanwhile."""
        while b"\n" not in self.buffer:
            # The launcher's own standard input is watched too: a start can be stopped, a trial is short.
            orders = [] if self.orders or self.plan.get("trial") else [0]
            ready = select.select([self.events, *orders], [], [])[0]
            if self.orders or (0 in ready and not self._read_orders()):
                raise namespaces.Failed("ANBOX-C022", "the start was stopped", "the manager said so")
            if self.events not in ready:
                continue
            more = os.read(self.events, 65536)
            if not more or len(self.buffer) > MAX_EVENT_BYTES:
                raise namespaces.Refused("the container's first process ended without a word")
            self.buffer += more
        line, _, self.buffer = self.buffer.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "refused":
            raise namespaces.Refused(event["why"])
        if event["event"] == "failed":
            raise namespaces.Failed(event["code"], event["what"], event["why"], event["cure"])
        assert event["event"] == wanted, event
        return event

    def _write_id_maps(self, entry: int) -> None:
        """Map the container's ids: its 0 to the user it runs for, and others where the kernel lets us."""
        maps = self.plan["id_maps"]
        for number, (uids, gids) in enumerate(maps, 1):
            try:
                if os.geteuid() != 0:
                    # Without privileges the kernel wants this first (user_namespaces(7)).
                    _write(f"/proc/{entry}/setgroups", "deny")
                _write(f"/proc/{entry}/uid_map", uids)
                _write(f"/proc/{entry}/gid_map", gids)
                return
            except OSError as error:
                if number == len(maps):
                    raise namespaces.Refused(f"setting the id map: {error.strerror}") from error

    # -- without --

    def _start_plain(self, why: str) -> None:
        plan = {**self.plan, **self.plan["plain"]}
        root = plan["root"]
        notes = []
        try:
            for path, mode in plan["directories"]:
                os.makedirs(f"{root}/{path}", exist_ok=True)
                os.chmod(f"{root}/{path}", mode)
            for source in plan["sources"]:
                if not os.path.exists(source):
                    raise namespaces.Failed(
                        "ANBOX-C008", f"{source} cannot be shown to the container", "it does not exist"
                    )
            for path, text in plan["links"]:
                os.makedirs(os.path.dirname(f"{root}/{path}"), exist_ok=True)
                os.symlink(text, f"{root}/{path}")
        except OSError as error:
            raise namespaces.Failed(
                "ANBOX-C005", f"{root} cannot be made", error.strerror or str(error)
            ) from error
        landlock = _landlock.abi()
        if landlock:
            notes.append(f"Landlock {landlock} lets it write to its own directories only")
        reading, writing = os.pipe()
        launcher = os.getpid()
        self.child = os.fork()
        if self.child == 0:  # pragma: no cover
            signal.set_wakeup_fd(-1)
            os.close(reading)
            try:
                _become_plain(plan, plan)
                if landlock:
                    _landlock.restrict_writes(landlock, [*plan["writable"], *PLAIN_DEVICES])
                sys_.set_parent_death_signal(signal.SIGKILL)
                if os.getppid() != launcher:
                    os._exit(127)
            except BaseException as error:
                os.write(writing, str(error).encode()[:4096])
                os._exit(127)
            _child_exec(plan, self.output[1], writing)
        os.close(writing)
        with open(reading, "rb") as file:
            error_text = file.read(4096).decode("utf-8", "replace")
        if error_text:
            raise namespaces.Failed("ANBOX-C013", f"init cannot be executed: {plan['argv'][0]}", error_text)
        gate = self._open_gate(inside=False)
        tell(
            event="started",
            isolation="plain",
            pid=self.child,
            namespaces=[],
            refused={"all": why or "not asked for"},
            notes=notes,
            address=None,
            gate=gate,
        )

    # -- while it runs --

    def _supervise(self) -> None:
        os.close(self.output[1])
        poll = select.poll()
        watched = {0: select.POLLIN, self.wakeup[0]: select.POLLIN, self.output[0]: select.POLLIN}
        if self.events >= 0:
            watched[self.events] = select.POLLIN
        for descriptor, mask in watched.items():
            poll.register(descriptor, mask)
        self._obey()
        while not self._reap():
            for descriptor, _ in poll.poll():
                if descriptor == 0:
                    if not self._read_orders():
                        poll.unregister(0)
                    self._obey()
                elif descriptor == self.wakeup[0]:
                    if {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & set(os.read(self.wakeup[0], 512)):
                        self._kill()
                elif descriptor == self.events:
                    more = os.read(self.events, 4096)
                    self.buffer += more
                    if not more or len(self.buffer) > MAX_EVENT_BYTES:
                        poll.unregister(self.events)
                elif not self.log.write(os.read(self.output[0], LOG_CHUNK_BYTES)):
                    poll.unregister(self.output[0])
        self._kill_all()
        self._drain()
        tell(event="exited", killed=self.killed, **(self.result or {}))

    def _read_orders(self) -> bool:
        """Take orders in; False when the manager is gone."""
        orders = os.read(0, 512)
        self.orders += orders or b"K"
        return bool(orders)

    def _obey(self) -> None:
        for order in self.orders:
            if order == ord("T"):
                self._signal(signal.SIGTERM)
            elif order == ord("K"):
                self._kill()
        self.orders = b""

    def _kill(self) -> None:
        self.killed = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.child:
            _kill_quietly(self.child, number)

    def _reap(self) -> bool:
        """Wait for the dead; True when the container's first process is among them."""
        ended = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return ended
            if pid == self.child:
                ended = True
                self.child = 0
                self.result = self._exit_of_init() or _status(status)

    def _exit_of_init(self) -> dict[str, Any] | None:
        """What pid 1 said of init's end; it cannot end as init did, so it tells it."""
        if not self.namespaced:
            return None
        os.set_blocking(self.events, False)
        try:
            self.buffer += os.read(self.events, 4096)
        except BlockingIOError:
            pass
        for line in self.buffer.splitlines():
            event = json.loads(line)
            if event.get("event") == "exited":
                return {key: event[key] for key in ("status", "signal") if key in event}
        return None

    def _kill_all(self) -> None:
        """Kill and wait for every process that is left below us."""
        until = time.monotonic() + KILL_WAIT_S
        while time.monotonic() < until:
            left = _children(os.getpid())
            if not left:
                self.child = 0
                return
            for pid in left:
                _kill_quietly(pid)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                continue
            select.select([self.wakeup[0]], [], [], 0.02)
            try:
                os.read(self.wakeup[0], 512)
            except BlockingIOError:
                pass

    def _drain(self) -> None:
        """Log what init had written before it ended."""
        os.set_blocking(self.output[0], False)
        drained = 0
        try:
            while drained < DRAIN_LIMIT_BYTES:
                data = os.read(self.output[0], LOG_CHUNK_BYTES)
                drained += len(data)
                if not self.log.write(data):
                    break
        except BlockingIOError:
            pass
        self.log.close()


def _become_plain(plain: dict[str, Any], plan: dict[str, Any]) -> None:
    """Give up what a process of a container without namespaces does not have; see the key ``plain``."""
    if plain["switch_user"]:
        os.setgroups([])
        os.setresgid(plan["gid"], plan["gid"], plan["gid"])
        os.setresuid(plan["uid"], plan["uid"], plan["uid"])
    elif os.geteuid() == 0:
        sys_.drop_capabilities(frozenset())
    sys_.no_new_privileges()


def _close_quietly(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        pass


def _kill_quietly(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _children(pid: int) -> list[int]:
    """The children of a process, by its own task's list or, without that, by all processes' parents."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:
        pass
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat_file:
                    if int(stat_file.read(4096).rpartition(b")")[2].split()[1]) == pid:
                        found.append(int(name))
            except (OSError, IndexError):
                continue
    return found


def main() -> None:
    """Read the plan and run the container."""
    os.setsid()  # the terminal's Ctrl-C is the manager's, which then stops us in order
    sys_.set_name("anbox-launch")
    sys_.set_child_subreaper()
    plan, orders = read_plan()
    sys_.set_parent_death_signal(signal.SIGTERM)
    if os.getppid() != plan["manager"]:
        sys.exit(3)
    try:
        Launcher(plan, orders).run()
    except OSError as error:
        tell(
            event="failed",
            code="ANBOX-C004" if error.filename == plan["log"] else "ANBOX-C012",
            what="the container cannot be launched",
            why=str(error),
            cure="",
        )
