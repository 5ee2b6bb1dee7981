"""Which handler answers which method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anbox_tw.rpc.errors import BadParameters, UnknownMethod
from anbox_tw.rpc.messages import parse_message
from anbox_tw.rpc.peer import Peer

__all__ = ["Answer", "Dispatcher", "Handler"]

Answer = Message | None
"""What a handler gives: a message, or None for an empty ``Void``."""

_Request = TypeVar("_Request", bound=Message)

Handler = Callable[[Any, Peer], Answer | Awaitable[Answer]]
"""``handler(request, peer)``: a function, a function that returns a Deferred, or a coroutine function."""


class Dispatcher:
    """The methods one side of a link offers.

    One dispatcher serves any number of channels; what differs between peers comes to each handler
    as its ``peer`` argument.
    """

    _log = Logger()

    def __init__(self) -> None:
        self._methods: dict[str, tuple[type[Message], Handler, bool]] = {}

    @property
    def methods(self) -> list[str]:
        """The names of all methods, sorted."""
        return sorted(self._methods)

    def register(
        self,
        method_name: str,
        request_type: type[_Request],
        handler: Callable[[_Request, Peer], Answer | Awaitable[Answer]],
        *,
        cancel_on_disconnect: bool = True,
    ) -> None:
        """Offer a method.

        Args:
            method_name: as it stands in the ``Invocation``.
            request_type: the generated class of its parameters.
            handler: gets the parsed request and the ``Peer``, whose credentials it checks. What it
                raises goes to the caller; an ``AnboxError`` with cause, cure and code.
            cancel_on_disconnect: cancel the handler's Deferred when the caller's link is lost. Give
                False for work that must be brought to its end or undone by the handler itself.

        Raises:
            ValueError: there is such a method already.
        """
        if method_name in self._methods:
            raise ValueError(f"the method {method_name!r} is registered already")
        self._methods[method_name] = (request_type, handler, cancel_on_disconnect)

    def dispatch(
        self, method_name: str, parameters: bytes, peer: Peer
    ) -> tuple[Answer | Deferred[Answer], bool]:
        """Call the handler of one invocation.

        Returns:
            What the handler gave, a coroutine wrapped in a Deferred, and whether that Deferred is
            to be cancelled when the link is lost.

        Raises:
            UnknownMethod: there is no such method.
            BadParameters: ``parameters`` are not the method's request.
            Exception: whatever the handler raised.
        """
        try:
            request_type, handler, cancel = self._methods[method_name]
        except KeyError:
            raise UnknownMethod(
                f"there is no method {method_name[:128]!r} here",
                "the peer is older than its caller, or something else than the caller thinks",
            ) from None
        try:
            request = parse_message(request_type, parameters)
        except DecodeError as error:
            raise BadParameters(f"the parameters of {method_name[:128]} cannot be parsed: {error}") from None
        result = handler(request, peer)
        if result is None or isinstance(result, (Message, Deferred)):
            return result, cancel
        # last: the question to an abstract class costs as much as the parsing of a small message
        if isinstance(result, Coroutine):
            return Deferred.fromCoroutine(result), cancel
        self._log.error("the handler of {method} returned {result!r}", method=method_name, result=result)
        raise TypeError(f"the handler of {method_name} returned no message")
