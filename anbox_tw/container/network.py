"""The containers' network: the bridge ``anbox0``, its nft table, and an address for each container.

The bridge is made for the first container and goes away with the last one, whichever managers run them.
What tells who is there is a directory of *leases* in ``/run``, one for each network namespace:

* A lease is a file that its manager keeps locked (``flock``) while the container is there. The kernel
  drops the lock when the manager dies, in whatever way: no counter can be wrong after a crash.
* ``state.json`` says what was made and what was there before. It is written before anything is made.
* What is made is made by netd's code (`anbox_tw.netd.bridge`), which notes each change of the kernel in
  ``kernel.journal`` before it makes it.
* All of it is read and changed under one lock. Whoever finds a state without a living lease takes down
  what it names: the next container's start, or the undoing of the dead one's journal.

This module is only what `anbox_tw.container.lxc` needs: `ContainerNetwork.acquire`, and the undo kind
``network`` that gives back. Another implementation of these two may take its place.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anbox_tw.container import network_plan as plan
from anbox_tw.container.commands import Completed
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.journal import (
    ORPHAN_POLL_S,
    ORPHAN_WAIT_S,
    Journal,
    UndoContext,
    UndoKind,
)
from anbox_tw.container.spec import NetworkSpec
from anbox_tw.errors import AnboxError
from anbox_tw.netd.bridge import Alias, Bridge
from anbox_tw.netd.children import Completed as NftCompleted
from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.forwarding import ForwardingClaims
from anbox_tw.netd.kernel_journal import KernelJournal
from anbox_tw.netd.namespace import NetworkNamespace
from anbox_tw.network.credentials import process_lives

__all__ = ["NETWORK_KIND", "ContainerNetwork", "Lease", "host_name_servers"]

LOCK_TIMEOUT_S = 10.0  # making the bridge takes some 50 ms; several managers may wait in a row
LOCK_POLL_S = 0.02
MAX_STATE_BYTES = 64 * 1024  # a state or lease has some 300 bytes
RESOLV_CONFS = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
"""The second has what systemd-resolved asks when the first only names its stub."""

RUN_DIRECTORY = "/run/anbox/network"
KERNEL_JOURNAL = "kernel.journal"
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,128}")

_log = Logger()
_held: dict[tuple[str, str], int] = {}  # (state directory, key) -> descriptor of our locked lease
_claims: dict[tuple[str, str], ForwardingClaims] = {}  # likewise: that the container needs forwarding


@attrs.frozen
class Lease:
    """What one container has of the network.

    Attributes:
        bridge: name of the bridge.
        address: the container's address with prefix length.
        gateway: the bridge's address.
        dns: name servers for the container.
        notes: what does not work as one would expect.
        resolver: the host's own name server on its loopback, where ``dns`` is the bridge and leads there; else empty.
    """

    bridge: str
    address: ipaddress.IPv4Interface
    gateway: ipaddress.IPv4Address
    dns: tuple[str, ...]
    notes: tuple[str, ...] = ()
    resolver: str = ""


def host_name_servers(paths: tuple[str, ...] = RESOLV_CONFS) -> tuple[str, ...]:
    """The host's IPv4 name servers that a container can reach; Anbox's ``8.8.8.8`` if there is none."""
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                found = plan.parse_resolv_conf(file.read(MAX_STATE_BYTES))
        except OSError:
            continue
        if found:
            return found
    return plan.FALLBACK_DNS


def host_resolver(paths: tuple[str, ...] = RESOLV_CONFS[:1]) -> str:
    """The name server on the host's own loopback that the host asks, or an empty string."""
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return plan.loopback_name_server(file.read(MAX_STATE_BYTES))
        except OSError:
            continue
    return ""


def _aliases(state: Mapping[str, Any], leases: Iterable[Mapping[str, Any]]) -> tuple[Alias, ...]:
    """The ways to the host's loopback that the containers have."""
    gateway = ipaddress.IPv4Address(state["gateway"])
    found: list[Alias] = []
    for lease in leases:
        address, resolver = str(lease.get("address")), str(lease.get("resolver") or "")
        if not _is_address(address):
            continue
        source = ipaddress.IPv4Address(address)
        if lease.get("host_loopback"):
            found.append(Alias(plan.HOST_ALIAS, source=source))
        if _is_address(resolver):
            found.append(Alias(gateway, ipaddress.IPv4Address(resolver), source, plan.DNS_PORT))
    return tuple(found)


def _namespace(proc: str) -> str:
    """A name for our network namespace; the same for every process in it."""
    return os.readlink(f"{proc}/self/ns/net").removeprefix("net:[").rstrip("]")


class _Locked:
    """The state directory, while we hold its lock."""

    def __init__(self, directory: str, descriptor: int, proc: str) -> None:
        self.directory = directory
        self.descriptor = descriptor
        self.proc = proc

    def release(self) -> None:
        os.close(self.descriptor)

    # -- the state --

    def read(self) -> dict[str, Any] | None:
        return _state_in(_read_json(f"{self.directory}/state.json"))

    def write(self, state: Mapping[str, Any]) -> None:
        _write_json(f"{self.directory}/state.json", state)

    # -- leases --

    def leases(self) -> dict[str, dict[str, Any]]:
        """The living leases; what dead managers left is deleted."""
        found = {}
        for name in sorted(os.listdir(f"{self.directory}/leases")):
            path = f"{self.directory}/leases/{name}"
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                lease = _read_json(path) or {}
                if _is_free(descriptor, lease.get("pid"), self.proc):
                    os.unlink(path)
                else:
                    found[name] = lease
            finally:
                os.close(descriptor)
        return found

    def take(self, key: str, lease: Mapping[str, Any]) -> None:
        path = f"{self.directory}/leases/{key}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(lease).encode(), 0)
        except BlockingIOError:
            os.close(descriptor)
            raise DiagnosedError.of(
                "ANBOX-C007", f"the container {key} is on the network already", "another manager runs it"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        _held[self.directory, key] = descriptor

    def drop(self, key: str) -> None:
        claims = _claims.pop((self.directory, key), None)
        if claims is not None:
            claims.close()
        descriptor = _held.pop((self.directory, key), None)
        if descriptor is not None:
            os.close(descriptor)

    def remove(self) -> None:
        """Delete the directory; whoever waits for its lock will make a new one."""
        for name in ("state.json", KERNEL_JOURNAL, "lock"):
            try:
                os.unlink(f"{self.directory}/{name}")
            except FileNotFoundError:
                pass
        parent = os.path.dirname(self.directory)
        for directory in (f"{self.directory}/leases", self.directory, parent, os.path.dirname(parent)):
            try:
                os.rmdir(directory)
            except OSError:
                break  # somebody else's things are in it


def _is_free(descriptor: int, pid: Any, proc: str) -> bool:
    """Lock a lease, unless a living manager has it locked."""
    deadline = time.monotonic() + ORPHAN_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            alive = not isinstance(pid, int) or process_lives(pid, proc)
            if alive or time.monotonic() >= deadline:
                return False
            # a child of one that was killed, which has not become its tool yet; see `Journal`
            time.sleep(ORPHAN_POLL_S)


def _state_of(leases: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The state as the leases remember it, should its own file be damaged."""
    return next((each["state"] for each in leases.values() if _state_in(each.get("state"))), None)


def _state_in(value: Any) -> dict[str, Any] | None:
    """The state that was read, if it is one."""
    try:
        ipaddress.IPv4Network(value["subnet"])
        ipaddress.IPv4Address(value["gateway"])
        good = isinstance(value["created"], bool) and all(
            isinstance(value[key], str) for key in ("bridge", "table")
        )
    except (TypeError, KeyError, ValueError):
        return None
    return value if good else None


def _read_json(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(MAX_STATE_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _write_json(path: str, value: Mapping[str, Any]) -> None:
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.rename(f"{path}.new", path)


def _sleep(context: UndoContext, seconds: float) -> Deferred[None]:
    waiter: Deferred[None] = Deferred(lambda _: timer.cancel())
    timer = context.reactor.callLater(seconds, waiter.callback, None)
    return waiter


async def _lock(directory: str, context: UndoContext) -> _Locked:
    """Take the lock of a state directory, which is made if it is missing.

    Raises:
        DiagnosedError: others kept it for too long, or it cannot be made (``ANBOX-C016``).
    """
    waited = 0.0
    while True:
        try:
            os.makedirs(f"{directory}/leases", mode=0o755, exist_ok=True)
            descriptor = os.open(
                f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except FileNotFoundError:
            continue  # its last user has just removed the directory
        except OSError as error:
            raise DiagnosedError.of(
                "ANBOX-C016", f"the network's state in {directory} cannot be written", str(error)
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours, named = os.fstat(descriptor), os.stat(f"{directory}/lock")
            if (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino):
                return _Locked(directory, descriptor, context.proc)
        except FileNotFoundError:
            pass  # we locked one that is deleted: again
        except BlockingIOError:
            if waited >= LOCK_TIMEOUT_S:
                os.close(descriptor)
                raise DiagnosedError.of(
                    "ANBOX-C016",
                    "another manager does not let go of the containers' network",
                    f"{directory}/lock was held for {LOCK_TIMEOUT_S:g} s",
                ) from None
            os.close(descriptor)
            await _sleep(context, LOCK_POLL_S)
            waited += LOCK_POLL_S
            continue
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


class ContainerNetwork:
    """Gives containers their place on the bridge."""

    def __init__(
        self,
        *,
        bridge: str = plan.BRIDGE,
        run_directory: str = RUN_DIRECTORY,
        resolv_confs: tuple[str, ...] = RESOLV_CONFS,
    ) -> None:
        """Args:
        bridge: its name, and that of the nft table.
        run_directory: where leases are; they are for one boot.
        resolv_confs: where the host's name servers are looked up.
        """
        self.bridge = bridge
        self.run_directory = run_directory
        self.resolv_confs = resolv_confs

    async def acquire(self, key: str, wanted: NetworkSpec, journal: Journal) -> Lease:
        """Have an address on the bridge, which is made if it is not there.

        Args:
            key: names the container among all of this host.
            wanted: addresses that were asked for.
            journal: where it is written down; undoing the entry gives the address back.

        Raises:
            DiagnosedError: it cannot be had (``ANBOX-C016``), or a tool is missing.
        """
        context = journal.context
        directory = f"{self.run_directory}/{_namespace(context.proc)}"
        journal.record("network", directory=directory, key=key, bridge=self.bridge)
        locked = await _lock(directory, context)
        try:
            leases = locked.leases()
            state = locked.read() or _state_of(leases)
            if state is not None and not leases:
                await _take_down(state, locked, context)
                state = None
            if state is None:
                state = await self._plan(wanted, context)
            locked.write(state)
            lease, notes = self._choose(state, wanted, [str(each.get("address")) for each in leases.values()])
            written = {
                "address": str(lease.address.ip),
                "pid": os.getpid(),
                "state": state,
                "host_loopback": wanted.host_loopback,
                "resolver": lease.resolver,
            }
            locked.take(key, written)
            claims = _claims[directory, key] = ForwardingClaims()
            notes += await self._make(
                state, locked, context, claims, _aliases(state, [*leases.values(), written])
            )
        finally:
            locked.release()
        return attrs.evolve(lease, notes=tuple(notes))

    # -- planning --

    async def _plan(self, wanted: NetworkSpec, context: UndoContext) -> dict[str, Any]:
        existing = await _bridge_address(self.bridge, context)
        state: dict[str, Any] = {"bridge": self.bridge, "table": self.bridge}
        if existing is not None:
            # Somebody else's, for example of Anbox's own script: it is used, and stays.
            return {**state, "created": False, "subnet": str(existing.network), "gateway": str(existing.ip)}
        routes = plan.routes_of(
            _json_list(await _ip(context, "-j", "-4", "route", "show", "table", "all")), self.bridge
        )
        if wanted.address is None and wanted.gateway is None:
            subnet = plan.choose_subnet(routes)
        else:
            subnet = _subnet_asked_for(wanted)
            other = plan.overlapping(subnet, routes)
            if other is not None:
                raise DiagnosedError.of(
                    "ANBOX-C016",
                    f"the containers' subnet {subnet} overlaps the host's route to {other}",
                    "",
                    "choose another --container-network-address, or none",
                )
        gateway = wanted.gateway or str(subnet.network_address + 1)
        return {**state, "created": True, "subnet": str(subnet), "gateway": gateway}

    def _choose(
        self, state: Mapping[str, Any], wanted: NetworkSpec, taken: list[str]
    ) -> tuple[Lease, list[str]]:
        subnet = ipaddress.IPv4Network(state["subnet"])
        bridge_address = ipaddress.IPv4Address(state["gateway"])
        notes = []
        asked = ipaddress.IPv4Interface(wanted.address).ip if wanted.address else None
        address = plan.choose_address(
            subnet, bridge_address, [each for each in taken if _is_address(each)], asked
        )
        gateway = ipaddress.IPv4Address(wanted.gateway) if wanted.gateway else bridge_address
        if gateway not in subnet:
            raise DiagnosedError.of(
                "ANBOX-C016",
                f"the gateway {gateway} is not in the bridge's subnet {subnet}",
                "",
                "leave --container-network-gateway out",
            )
        if subnet != plan.DEFAULT_SUBNET and not wanted.address:
            notes.append(f"the subnet is {subnet}: the usual {plan.DEFAULT_SUBNET} is not free on this host")
        dns, resolver = wanted.dns or host_name_servers(self.resolv_confs), ""
        if not wanted.dns and dns == plan.FALLBACK_DNS:
            resolver = host_resolver(self.resolv_confs[:1])
            if resolver:
                # It answers on the host's loopback only: the bridge's address leads there.
                dns = (str(bridge_address),)
        return Lease(self.bridge, address, gateway, dns, resolver=resolver), notes

    # -- making --

    async def _make(
        self,
        state: Mapping[str, Any],
        locked: _Locked,
        context: UndoContext,
        claims: ForwardingClaims,
        aliases: tuple[Alias, ...],
    ) -> list[str]:
        """Make what is not there; each step may be repeated."""
        bridge = _bridge_of(state, locked, context, claims)
        bridge.aliases = aliases
        try:
            with _diagnosed(f"the bridge {bridge.name} could not be made"):
                if state["created"]:
                    await bridge.make_link()
                bridge.forward()
            try:
                await bridge.make_table()
                if bridge.aliases:
                    bridge.open_loopback()
            except KernelRefused as error:
                # Host and containers reach each other without it.
                return [f"containers do not reach beyond the host, for nft failed: {error.cause}"]
        finally:
            bridge.close()
        chains = await context.commands.run(["nft", "-j", "list", "chains"])
        dropping = plan.dropping_chains(_nftables(chains), state["table"])
        return [
            f"the firewall's chain {name!r} drops what containers send beyond the host" for name in dropping
        ]


def _subnet_asked_for(wanted: NetworkSpec) -> ipaddress.IPv4Network:
    if wanted.address is not None:
        return ipaddress.IPv4Interface(wanted.address).network
    return ipaddress.IPv4Interface(f"{wanted.gateway}/24").network


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


async def _ip(context: UndoContext, *arguments: str) -> Completed:
    return (await context.commands.run(["ip", *arguments])).require(
        "ANBOX-C016", "the host's network could not be looked at"
    )


def _json_list(result: Completed) -> list[Any]:
    try:
        value = json.loads(result.stdout or b"[]")
    except (ValueError, RecursionError):
        return []
    return value if isinstance(value, list) else []


def _nftables(result: Completed) -> list[Any]:
    try:
        value = json.loads(result.stdout or b"{}")
    except (ValueError, RecursionError):
        return []
    entries = value.get("nftables") if isinstance(value, dict) else None
    return entries if isinstance(entries, list) else []


@contextmanager
def _diagnosed(what: str) -> Iterator[None]:
    """Turn what netd's code fails with into ``ANBOX-C016``."""
    try:
        yield
    except DiagnosedError:
        raise
    except AnboxError as error:
        raise DiagnosedError.of("ANBOX-C016", what, error.cause, error.cure) from error


def _bridge_of(
    state: Mapping[str, Any], locked: _Locked, context: UndoContext, claims: ForwardingClaims | None = None
) -> Bridge:
    """The bridge that a state is about."""

    async def nft(text: str) -> NftCompleted:
        # not netd's own way: whoever gives up a container's start waits for what `Commands` has begun
        done = await context.commands.run(["nft", "-j", "-f", "-"], data=text.encode())
        return NftCompleted(done.status, "", done.error_text)

    prefix = ipaddress.IPv4Network(state["subnet"]).prefixlen
    return Bridge(
        context.reactor,
        state["bridge"],
        f"{state['gateway']}/{prefix}",
        table=state["table"],
        journal=KernelJournal(f"{locked.directory}/{KERNEL_JOURNAL}", NetworkNamespace().identity()),
        nft=nft,
        claims=claims,
    )


async def _bridge_address(name: str, context: UndoContext) -> ipaddress.IPv4Interface | None:
    """The IPv4 address of the bridge; ``None`` if there is no such interface.

    Raises:
        DiagnosedError: there is one that is not a bridge, or has no address (``ANBOX-C016``).
    """
    bridge = Bridge(context.reactor, name, "0.0.0.0/0")
    try:
        with _diagnosed("the host's network could not be looked at"):
            seen = await bridge.look()
    finally:
        bridge.close()
    if seen is None:
        return None
    if not seen.is_bridge:
        raise DiagnosedError.of(
            "ANBOX-C016",
            f"{name} is not a bridge",
            "",
            f"rename or delete that interface: ip link delete {name}",
        )
    if not seen.addresses:
        raise DiagnosedError.of(
            "ANBOX-C016",
            f"the bridge {name} has no IPv4 address",
            "",
            f"give it one, or delete it: ip link delete {name}",
        )
    return seen.addresses[0]


async def _take_down(state: Mapping[str, Any], locked: _Locked, context: UndoContext) -> None:
    """Take down what a state names. What is not there (any more) is no failure."""
    bridge = _bridge_of(state, locked, context)
    try:
        with _diagnosed(f"the bridge {bridge.name} could not be taken down"):
            await bridge.unmake()
    finally:
        bridge.close()


async def _undo_network(args: Mapping[str, Any], context: UndoContext) -> None:
    """Give a lease back; the last one takes the bridge down."""
    directory, key = args.get("directory"), args.get("key")
    if not isinstance(directory, str) or not directory.startswith("/") or not _KEY.fullmatch(str(key)):
        raise DiagnosedError.of("ANBOX-C017", "the journal entry names no lease")
    if not os.path.isdir(directory):
        return
    if os.path.basename(directory) != _namespace(context.proc):
        # It is about a network namespace that we are not in. If it lives, its own managers look after it.
        claims = _claims.pop((directory, str(key)), None)
        if claims is not None:
            claims.close()
        held = _held.pop((directory, str(key)), None)
        if held is not None:
            os.close(held)
        return
    locked = await _lock(directory, context)
    try:
        state = locked.read() or _state_of(locked.leases())
        locked.drop(str(key))
        if locked.leases():
            return
        if state is not None:
            await _take_down(state, locked, context)
        locked.remove()
    finally:
        locked.release()


NETWORK_KIND = UndoKind(
    "network",
    _undo_network,
    lambda args: f"the place on the bridge {args.get('bridge')}",
    lambda args: f"ip link delete {args.get('bridge')}; nft delete table ip {args.get('bridge')}",
)
"""How the journal gives back what `ContainerNetwork.acquire` took."""
