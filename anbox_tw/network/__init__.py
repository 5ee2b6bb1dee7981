"""The network ground: listeners, connections, credentials, fd passing and the relay."""

from anbox_tw.network._published import MAX_PATH_BYTES
from anbox_tw.network.connections import (
    CLOSE_GRACE_S,
    DEFAULT_CONNECTION_LIMIT,
    Connections,
    ITrackedConnection,
)
from anbox_tw.network.connectors import EndpointConnector, RetryPolicy, TcpConnector, UnixConnector
from anbox_tw.network.creators import DelegateCreator, NullCreator, ProcessorCreator, SingleClientCreator
from anbox_tw.network.credentials import (
    Credentials,
    describe_process,
    peer_credentials,
    peer_groups,
    process_command,
)
from anbox_tw.network.fds import FdReceiver, close_fds, receive_fds, send_fds
from anbox_tw.network.forwarding import ForwardCreator, ISocketCreator
from anbox_tw.network.listeners import CreatorFactory, EndpointListener, TcpListener, UnixListener
from anbox_tw.network.paths import DEFAULT_INSTANCE, RuntimePaths, check_instance_name, find_runtime_dir
from anbox_tw.network.ports import PortAllocator, PortClaim, free_port, holder_of_port, owner_of_port
from anbox_tw.network.relaying import (
    Relay,
    RelayCounters,
    RelayEnd,
    RelayProtocol,
    RelayResult,
    relay,
)
from anbox_tw.network.shaping import Lane, Shaper
from anbox_tw.network.socket_connection import MAX_QUEUE_BYTES, IEndOfInput, SocketConnection
from anbox_tw.network.tracked import TrackedProtocol, abort_transport, hand_over

__all__ = [
    "CLOSE_GRACE_S",
    "DEFAULT_CONNECTION_LIMIT",
    "DEFAULT_INSTANCE",
    "MAX_PATH_BYTES",
    "MAX_QUEUE_BYTES",
    "Connections",
    "CreatorFactory",
    "Credentials",
    "DelegateCreator",
    "EndpointConnector",
    "EndpointListener",
    "FdReceiver",
    "ForwardCreator",
    "IEndOfInput",
    "ISocketCreator",
    "ITrackedConnection",
    "Lane",
    "NullCreator",
    "PortAllocator",
    "PortClaim",
    "ProcessorCreator",
    "Relay",
    "RelayCounters",
    "RelayEnd",
    "RelayProtocol",
    "RelayResult",
    "RetryPolicy",
    "RuntimePaths",
    "Shaper",
    "SingleClientCreator",
    "SocketConnection",
    "TcpConnector",
    "TcpListener",
    "TrackedProtocol",
    "UnixConnector",
    "UnixListener",
    "abort_transport",
    "check_instance_name",
    "close_fds",
    "describe_process",
    "find_runtime_dir",
    "free_port",
    "hand_over",
    "holder_of_port",
    "owner_of_port",
    "peer_credentials",
    "peer_groups",
    "process_command",
    "receive_fds",
    "relay",
    "send_fds",
]
