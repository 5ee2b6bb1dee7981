from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Invocation(_message.Message):
    __slots__ = ("id", "method_name", "parameters", "protocol_version")
    ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    id: int
    method_name: str
    parameters: bytes
    protocol_version: int
    def __init__(self, id: _Optional[int] = ..., method_name: _Optional[str] = ..., parameters: _Optional[bytes] = ..., protocol_version: _Optional[int] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("id", "response", "events")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    id: int
    response: bytes
    events: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, id: _Optional[int] = ..., response: _Optional[bytes] = ..., events: _Optional[_Iterable[bytes]] = ...) -> None: ...

class StructuredError(_message.Message):
    __slots__ = ("domain", "code", "cause", "cure", "identifier", "exit_code")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    CURE_FIELD_NUMBER: _ClassVar[int]
    IDENTIFIER_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    domain: int
    code: int
    cause: str
    cure: str
    identifier: str
    exit_code: int
    def __init__(self, domain: _Optional[int] = ..., code: _Optional[int] = ..., cause: _Optional[str] = ..., cure: _Optional[str] = ..., identifier: _Optional[str] = ..., exit_code: _Optional[int] = ...) -> None: ...

class Void(_message.Message):
    __slots__ = ("error", "structured_error")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    error: str
    structured_error: StructuredError
    def __init__(self, error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...
