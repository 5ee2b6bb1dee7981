from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

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

class Done(_message.Message):
    __slots__ = ("error", "structured_error")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    error: str
    structured_error: StructuredError
    def __init__(self, error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...

class SessionInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SessionInfo(_message.Message):
    __slots__ = ("instance", "serial", "adb_port", "console_port", "live", "ready", "booted", "sockets", "container", "pid", "version", "started_at", "waiting_for", "details", "error", "structured_error")
    class Socket(_message.Message):
        __slots__ = ("name", "path")
        NAME_FIELD_NUMBER: _ClassVar[int]
        PATH_FIELD_NUMBER: _ClassVar[int]
        name: str
        path: str
        def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...
    class Container(_message.Message):
        __slots__ = ("backend", "state", "phase", "pid", "address", "rootfs", "data_path", "failure", "details")
        BACKEND_FIELD_NUMBER: _ClassVar[int]
        STATE_FIELD_NUMBER: _ClassVar[int]
        PHASE_FIELD_NUMBER: _ClassVar[int]
        PID_FIELD_NUMBER: _ClassVar[int]
        ADDRESS_FIELD_NUMBER: _ClassVar[int]
        ROOTFS_FIELD_NUMBER: _ClassVar[int]
        DATA_PATH_FIELD_NUMBER: _ClassVar[int]
        FAILURE_FIELD_NUMBER: _ClassVar[int]
        DETAILS_FIELD_NUMBER: _ClassVar[int]
        backend: str
        state: str
        phase: str
        pid: int
        address: str
        rootfs: str
        data_path: str
        failure: str
        details: str
        def __init__(self, backend: _Optional[str] = ..., state: _Optional[str] = ..., phase: _Optional[str] = ..., pid: _Optional[int] = ..., address: _Optional[str] = ..., rootfs: _Optional[str] = ..., data_path: _Optional[str] = ..., failure: _Optional[str] = ..., details: _Optional[str] = ...) -> None: ...
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    ADB_PORT_FIELD_NUMBER: _ClassVar[int]
    CONSOLE_PORT_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    BOOTED_FIELD_NUMBER: _ClassVar[int]
    SOCKETS_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    instance: str
    serial: str
    adb_port: int
    console_port: int
    live: bool
    ready: bool
    booted: bool
    sockets: _containers.RepeatedCompositeFieldContainer[SessionInfo.Socket]
    container: SessionInfo.Container
    pid: int
    version: str
    started_at: float
    waiting_for: str
    details: str
    error: str
    structured_error: StructuredError
    def __init__(self, instance: _Optional[str] = ..., serial: _Optional[str] = ..., adb_port: _Optional[int] = ..., console_port: _Optional[int] = ..., live: _Optional[bool] = ..., ready: _Optional[bool] = ..., booted: _Optional[bool] = ..., sockets: _Optional[_Iterable[_Union[SessionInfo.Socket, _Mapping]]] = ..., container: _Optional[_Union[SessionInfo.Container, _Mapping]] = ..., pid: _Optional[int] = ..., version: _Optional[str] = ..., started_at: _Optional[float] = ..., waiting_for: _Optional[str] = ..., details: _Optional[str] = ..., error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...

class WatchSession(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SessionEvent(_message.Message):
    __slots__ = ("kind", "name", "detail", "timestamp", "info", "error", "structured_error")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    detail: str
    timestamp: float
    info: SessionInfo
    error: str
    structured_error: StructuredError
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., detail: _Optional[str] = ..., timestamp: _Optional[float] = ..., info: _Optional[_Union[SessionInfo, _Mapping]] = ..., error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...

class StopSession(_message.Message):
    __slots__ = ("reason", "force")
    REASON_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    force: bool
    def __init__(self, reason: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class Launch(_message.Message):
    __slots__ = ("action", "uri", "type", "package", "component", "categories", "stack", "left", "top", "right", "bottom")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    action: str
    uri: str
    type: str
    package: str
    component: str
    categories: _containers.RepeatedScalarFieldContainer[str]
    stack: int
    left: int
    top: int
    right: int
    bottom: int
    def __init__(self, action: _Optional[str] = ..., uri: _Optional[str] = ..., type: _Optional[str] = ..., package: _Optional[str] = ..., component: _Optional[str] = ..., categories: _Optional[_Iterable[str]] = ..., stack: _Optional[int] = ..., left: _Optional[int] = ..., top: _Optional[int] = ..., right: _Optional[int] = ..., bottom: _Optional[int] = ...) -> None: ...

class ListApplications(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ApplicationList(_message.Message):
    __slots__ = ("applications", "error", "structured_error")
    class Application(_message.Message):
        __slots__ = ("name", "package", "component")
        NAME_FIELD_NUMBER: _ClassVar[int]
        PACKAGE_FIELD_NUMBER: _ClassVar[int]
        COMPONENT_FIELD_NUMBER: _ClassVar[int]
        name: str
        package: str
        component: str
        def __init__(self, name: _Optional[str] = ..., package: _Optional[str] = ..., component: _Optional[str] = ...) -> None: ...
    APPLICATIONS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    applications: _containers.RepeatedCompositeFieldContainer[ApplicationList.Application]
    error: str
    structured_error: StructuredError
    def __init__(self, applications: _Optional[_Iterable[_Union[ApplicationList.Application, _Mapping]]] = ..., error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...

class Clipboard(_message.Message):
    __slots__ = ("text", "error", "structured_error")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    text: str
    error: str
    structured_error: StructuredError
    def __init__(self, text: _Optional[str] = ..., error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...

class DeviceRequest(_message.Message):
    __slots__ = ("verb", "arguments")
    VERB_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    verb: str
    arguments: str
    def __init__(self, verb: _Optional[str] = ..., arguments: _Optional[str] = ...) -> None: ...

class DeviceAnswer(_message.Message):
    __slots__ = ("result", "error", "structured_error")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    result: str
    error: str
    structured_error: StructuredError
    def __init__(self, result: _Optional[str] = ..., error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...

class Forward(_message.Message):
    __slots__ = ("listen", "target", "via", "way", "persistent", "connections", "accepted", "failed", "bytes_to_guest", "bytes_from_guest", "last_error", "problem")
    LISTEN_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    VIA_FIELD_NUMBER: _ClassVar[int]
    WAY_FIELD_NUMBER: _ClassVar[int]
    PERSISTENT_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    BYTES_TO_GUEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FROM_GUEST_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    listen: str
    target: str
    via: str
    way: str
    persistent: bool
    connections: int
    accepted: int
    failed: int
    bytes_to_guest: int
    bytes_from_guest: int
    last_error: str
    problem: str
    def __init__(self, listen: _Optional[str] = ..., target: _Optional[str] = ..., via: _Optional[str] = ..., way: _Optional[str] = ..., persistent: _Optional[bool] = ..., connections: _Optional[int] = ..., accepted: _Optional[int] = ..., failed: _Optional[int] = ..., bytes_to_guest: _Optional[int] = ..., bytes_from_guest: _Optional[int] = ..., last_error: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...

class AddForward(_message.Message):
    __slots__ = ("listen", "target", "via", "persistent")
    LISTEN_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    VIA_FIELD_NUMBER: _ClassVar[int]
    PERSISTENT_FIELD_NUMBER: _ClassVar[int]
    listen: str
    target: str
    via: str
    persistent: bool
    def __init__(self, listen: _Optional[str] = ..., target: _Optional[str] = ..., via: _Optional[str] = ..., persistent: _Optional[bool] = ...) -> None: ...

class RemoveForward(_message.Message):
    __slots__ = ("listen", "all")
    LISTEN_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    listen: str
    all: bool
    def __init__(self, listen: _Optional[str] = ..., all: _Optional[bool] = ...) -> None: ...

class ListForwards(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ForwardList(_message.Message):
    __slots__ = ("forwards", "error", "structured_error")
    FORWARDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    forwards: _containers.RepeatedCompositeFieldContainer[Forward]
    error: str
    structured_error: StructuredError
    def __init__(self, forwards: _Optional[_Iterable[_Union[Forward, _Mapping]]] = ..., error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...
