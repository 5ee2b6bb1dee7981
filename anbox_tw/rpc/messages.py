"""Parsing messages of a peer that may be hostile."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

__all__ = ["check_message", "parse_message"]

_Message = TypeVar("_Message", bound=Message)


def parse_message(message_type: type[_Message], data: bytes) -> _Message:
    """Parse one message and make sure that it is what its type says.

    ``FromString`` alone takes a message without its required fields, and gives ``bytes`` where the type
    says ``str`` when a proto2 string is not UTF-8: nobody who uses the field expects either.

    Raises:
        DecodeError: it cannot be parsed, lacks a required field, or has a string that is no text.
    """
    message = cast(_Message, cast(Any, message_type).FromString(data))
    check_message(message, data)
    return message


def check_message(message: Message, data: bytes) -> None:
    """Check a message that was parsed from ``data``, as `parse_message` does.

    Raises:
        DecodeError: it lacks a required field, or has a string that is no text.
    """
    # Nearly every message is ASCII as a whole, and then each of its strings is.
    if not data.isascii():
        _check_text(message)
    if not message.IsInitialized():
        checked: Any = message  # the stubs leave the next method out
        raise DecodeError(f"it lacks the required {', '.join(checked.FindInitializationErrors())}")


def _check_text(message: Message) -> None:
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            for text in (value,) if isinstance(value, (str, bytes)) else value:
                if not isinstance(text, str):
                    raise DecodeError(f"its field {field.name} is not UTF-8")
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            # protobuf has limited the depth.
            for inner in (value,) if isinstance(value, Message) else value:
                _check_text(inner)
