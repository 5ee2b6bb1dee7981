"""Every seam of anbox-tw, as zope interfaces.

The names are those of the Anbox C++ original (``src/anbox/network``, ``src/anbox/qemu``,
``src/anbox/container``); the meaning is Twisted's: nothing blocks, and every effect that
takes time is a Deferred.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocol
    from twisted.python.failure import Failure

__all__ = [
    "IAudioCapture",
    "IAudioPlayback",
    "IAudioSink",
    "IAudioSource",
    "ICameraSource",
    "ICameraStream",
    "IClipboard",
    "IConnectionCreator",
    "IConsoleHost",
    "IContainer",
    "IContainerBackend",
    "IFrameworkCommand",
    "IGuestGate",
    "IMessageProcessor",
    "IMessageSender",
    "IPipeService",
    "IReachableContainer",
    "IRedirections",
]


class IConnectionCreator(Interface):
    """Decides what serves a connection that a listener has accepted."""

    def create_connection_for(address: IAddress) -> IProtocol | None:
        """Build the protocol that serves one accepted connection.

        Args:
            address: the peer's address as Twisted gives it.

        Returns:
            A protocol, or ``None`` to refuse the connection. The creator logs why it refused;
            the listener then closes the connection.
        """


class IMessageSender(Interface):
    """What a message processor answers through."""

    def send(data: bytes) -> None:
        """Queue ``data`` for the peer, in one write, after all that was queued before.

        Sending on a closed connection is ignored.
        """

    def close(reason: str) -> None:
        """Flush what is queued, then close; ``reason`` is logged and given to ``connection_lost``."""


class IMessageProcessor(Interface):
    """Turns a peer's bytes into effects."""

    def process_data(data: bytes) -> None:
        """Take the next bytes of the stream, cut at any place.

        Raises:
            anbox_tw.errors.PeerError: the peer broke the protocol. The connection is closed and
                the error is its reason.
        """

    def connection_lost(reason: Failure) -> None:
        """The connection has ended, for ``reason``. Called exactly once."""


class IPipeService(Interface):
    """One service behind ``/dev/qemu_pipe``, chosen by the name the guest writes first."""

    name = Attribute("``str``: the exact name, for example ``qemud:adb`` or ``opengles``.")

    def open(argument: str, address: IAddress) -> IProtocol | None:
        """Serve one guest connection.

        Args:
            argument: what follows the name and its ``:``, or an empty string.
            address: the peer's address.

        Returns:
            The protocol that takes over the transport after the identification; bytes that came
            in behind the identification are given to its ``dataReceived``. ``None`` refuses, and
            the service has logged why.
        """


class ICameraSource(Interface):
    """Where a camera's pictures come from."""

    name = Attribute("``str``: as users write it, for example ``image:/srv/street.png``.")

    def start(width: int, height: int) -> Deferred[ICameraStream]:
        """Begin to make pictures of this size; both are even.

        Returns:
            Fires with the stream; fails with ``anbox_tw.qemu.errors.CameraError``.
        """


class ICameraStream(Interface):
    """Pictures of one size, as they come."""

    def next_picture() -> Deferred[Any]:
        """The newest ``anbox_tw.qemu.picture.Picture`` that was not given yet, as soon as there is one.

        One caller at a time. The stream keeps its own pace and makes no picture that nobody asks for.

        Returns:
            Fires with the picture; fails with ``anbox_tw.qemu.errors.CameraError`` when there will be none.
        """

    def stop() -> Deferred[None]:
        """End it; fires when nothing of it is left. A caller who waits for a picture gets a ``CameraError``."""


class IClipboard(Interface):
    """The text that host and guest exchange by copy and paste."""

    def get_text() -> Deferred[str]:
        """Fires with the text; empty when there is none, or none that is text."""

    def set_text(text: str) -> Deferred[None]:
        """Replace it; fires when others can see it."""


class IAudioSink(Interface):
    """Where the guest's sound goes."""

    name = Attribute("``str``: for lists and logs.")

    def open(form: Any, label: str) -> IAudioPlayback:
        """Begin a stream; several may be open at once.

        Args:
            form: of its samples, an `anbox_tw.device.pcm.PcmFormat`.
            label: what a mixer calls it.
        """


class IAudioPlayback(Interface):
    """One stream to a sink; its first three methods are Twisted's ``IConsumer``."""

    def write(data: bytes) -> None:
        """Take whole frames."""

    def registerProducer(producer: Any, streaming: bool) -> None:
        """Pause this push producer while the stream has enough, and resume it then."""

    def unregisterProducer() -> None:
        """Forget it."""

    def finish() -> Deferred[None]:
        """No more will be written; fires when the rest was played, or could not be."""

    def abort() -> Deferred[None]:
        """End at once; fires when everything of the stream is gone."""

    def describe() -> dict[str, Any]:
        """State and counters of the stream, JSON-able: at least ``sink``, ``buffered_ms``, ``played_ms``, ``dropped_ms``
        and ``underruns``."""


class IAudioSource(Interface):
    """Where what the guest records comes from."""

    name = Attribute("``str``: for lists and logs.")

    def open(form: Any, deliver: Callable[[bytes], object]) -> IAudioCapture:
        """Begin a stream; several may be open at once.

        Args:
            form: of the samples that are wanted, an `anbox_tw.device.pcm.PcmFormat`.
            deliver: called with whole frames, at the pace of the format.
        """


class IAudioCapture(Interface):
    """One stream from a source."""

    def pause() -> None:
        """The guest does not read. A source that can wait does; a live one goes on, and what it delivers is lost."""

    def resume() -> None:
        """It reads again."""

    def close() -> Deferred[None]:
        """End it; fires when everything of the stream is gone, and nothing is delivered from now on."""

    def describe() -> dict[str, Any]:
        """State of the stream, JSON-able: at least ``source``."""


class IContainerBackend(Interface):
    """A way to run containers: ``process``, ``lxc``."""

    name = Attribute("``str``: the name users choose it by.")

    def probe() -> Deferred[list[Any]]:
        """Look at the host without changing it.

        Returns:
            A list of ``anbox_tw.container.diagnosis.Probe``, each with a verdict and a cure.
        """

    def create(spec: Any, journal: Any) -> IContainer:
        """Make a container object; nothing on the host changes yet.

        Args:
            spec: ``anbox_tw.container.spec.ContainerSpec``.
            journal: ``anbox_tw.container.journal.Journal`` of the instance: every lasting change
                is written there before it is made.

        Raises:
            anbox_tw.errors.ContainerError: the spec cannot be run by this backend.
        """


class IContainer(Interface):
    """One container of one backend. The machine of its life (``container.machine``) drives it."""

    def prepare() -> Deferred[None]:
        """Make mounts, devices, network and configuration."""

    def start() -> Deferred[None]:
        """Start the container's init; fires when it runs.

        Raises:
            anbox_tw.errors.ContainerError: with cause, cure and the tail of the engine's log.
        """

    def stop(timeout: float) -> Deferred[None]:
        """Ask init to end, and end it by force after ``timeout`` seconds; fires when it is gone."""

    def when_exited() -> Deferred[str]:
        """A Deferred of the caller's own: fires with a description when init has ended."""

    def info() -> dict[str, Any]:
        """What is known now: init's host pid, address, isolation, log files, notes. JSON-able."""


class IReachableContainer(IContainer):
    """A container inside which sockets can be opened from the host."""

    gate = Attribute("`IGuestGate` of the running container, or ``None``.")


class IGuestGate(Interface):
    """The way to sockets inside one running container."""

    ready = Attribute("``bool``: it can be used now.")
    failure = Attribute("``str``: why it cannot be, or an empty string.")

    def check() -> None:
        """Raises ``anbox_tw.errors.NotRunning`` unless it can be used."""

    def hand_over(client: Any) -> None:
        """Let the container's helper serve a connected socket; it stays the caller's to close.

        Raises:
            anbox_tw.errors.NotRunning: there is no helper.
        """


class IFrameworkCommand(Interface):
    """One command of a libsysutils daemon: what stands behind the first word of a request."""

    name = Attribute("``str``: the first word.")
    lock_name = Attribute("``str``: commands with the same lock name run one at a time, across all clients.")

    def run(request: Any) -> Any:
        """Do what was asked.

        Args:
            request: ``anbox_tw.netd.listener.Request``: the arguments, who asks, and where replies go.

        Returns:
            None, a Deferred or a coroutine; the connection's next command begins when it is done.

        Raises:
            anbox_tw.netd.errors.CommandFailed: is sent as the reply.
        """


class IRedirections(Interface):
    """Ports of the host that lead to ports of the guest, for the emulator console's ``redir``."""

    def redirections() -> list[tuple[str, int, int]]:
        """Protocol (``tcp`` or ``udp``), host port and guest port of each."""

    def redirect(protocol: str, host_port: int, guest_port: int) -> Any:
        """Begin one, on the host's loopback.

        Returns:
            Anything, or a Deferred that fires when it listens.

        Raises:
            anbox_tw.errors.AlreadyRunning: the host port is taken.
            anbox_tw.errors.AnboxError: it cannot be.
        """

    def end_redirection(protocol: str, host_port: int) -> Any:
        """End one.

        Returns:
            Anything, or a Deferred that fires when it is closed.

        Raises:
            anbox_tw.errors.AnboxError: there is none.
        """


class IConsoleHost(Interface):
    """What the emulator console is the console of."""

    name = Attribute("``str``: of the virtual device, as ``avd name`` says it.")
    device = Attribute("``anbox_tw.device.Device``.")
    injector = Attribute("``anbox_tw.device.injector.Injector`` of its input.")
    redirections = Attribute("`IRedirections`, or ``None`` where there is no network.")
    running = Attribute("``bool``: whether the virtual device runs, and is not paused.")

    def pause() -> Deferred[None]:
        """Stop it where it is; fires when it stands. Fails with AnboxError where that cannot be."""

    def resume() -> Deferred[None]:
        """Let it go on after `pause`. Fails likewise."""

    def stop(reason: str) -> None:
        """End it for good, soon: what was written to the console still goes out."""
