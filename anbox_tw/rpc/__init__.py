"""The RPC channel: framing, calls as Deferreds, dispatcher and generated messages.

Use it from any Twisted program: ``Channel`` is a protocol, ``RpcFactory`` a factory for endpoints,
``connect`` dials a client endpoint. The schemas are in ``protocols/rpc``; the generated messages are
``anbox_tw.rpc._pb.anbox_*_pb2``.
"""

from __future__ import annotations

from anbox_tw.rpc.channel import Channel, Limits
from anbox_tw.rpc.dispatcher import Dispatcher
from anbox_tw.rpc.errors import (
    BadParameters,
    CallTimedOut,
    ChannelClosed,
    Domain,
    MessageTooBig,
    RemoteError,
    RpcCode,
    TooManyCalls,
    UnknownMethod,
    WrongVersion,
)
from anbox_tw.rpc.factory import RpcFactory, connect
from anbox_tw.rpc.messages import parse_message
from anbox_tw.rpc.peer import Credentials, Peer

__all__ = [
    "BadParameters",
    "CallTimedOut",
    "Channel",
    "ChannelClosed",
    "Credentials",
    "Dispatcher",
    "Domain",
    "Limits",
    "MessageTooBig",
    "Peer",
    "RemoteError",
    "RpcCode",
    "RpcFactory",
    "TooManyCalls",
    "UnknownMethod",
    "WrongVersion",
    "connect",
    "parse_message",
]
