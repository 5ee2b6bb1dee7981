from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Configuration(_message.Message):
    __slots__ = ("bind_mounts", "devices", "extra_properties")
    class BindMount(_message.Message):
        __slots__ = ("source", "target", "read_only")
        SOURCE_FIELD_NUMBER: _ClassVar[int]
        TARGET_FIELD_NUMBER: _ClassVar[int]
        READ_ONLY_FIELD_NUMBER: _ClassVar[int]
        source: str
        target: str
        read_only: bool
        def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., read_only: _Optional[bool] = ...) -> None: ...
    class Devices(_message.Message):
        __slots__ = ("path", "permission")
        PATH_FIELD_NUMBER: _ClassVar[int]
        PERMISSION_FIELD_NUMBER: _ClassVar[int]
        path: str
        permission: int
        def __init__(self, path: _Optional[str] = ..., permission: _Optional[int] = ...) -> None: ...
    BIND_MOUNTS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    EXTRA_PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    bind_mounts: _containers.RepeatedCompositeFieldContainer[Configuration.BindMount]
    devices: _containers.RepeatedCompositeFieldContainer[Configuration.Devices]
    extra_properties: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, bind_mounts: _Optional[_Iterable[_Union[Configuration.BindMount, _Mapping]]] = ..., devices: _Optional[_Iterable[_Union[Configuration.Devices, _Mapping]]] = ..., extra_properties: _Optional[_Iterable[str]] = ...) -> None: ...

class StartContainer(_message.Message):
    __slots__ = ("configuration", "instance", "backend", "rootfs", "data_path", "image", "detached", "privileged", "use_rootfs_overlay", "force_squashfuse", "init", "environment", "network")
    class EnvironmentVariable(_message.Message):
        __slots__ = ("name", "value")
        NAME_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        name: str
        value: str
        def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ROOTFS_FIELD_NUMBER: _ClassVar[int]
    DATA_PATH_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DETACHED_FIELD_NUMBER: _ClassVar[int]
    PRIVILEGED_FIELD_NUMBER: _ClassVar[int]
    USE_ROOTFS_OVERLAY_FIELD_NUMBER: _ClassVar[int]
    FORCE_SQUASHFUSE_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    configuration: Configuration
    instance: str
    backend: str
    rootfs: str
    data_path: str
    image: str
    detached: bool
    privileged: bool
    use_rootfs_overlay: bool
    force_squashfuse: bool
    init: _containers.RepeatedScalarFieldContainer[str]
    environment: _containers.RepeatedCompositeFieldContainer[StartContainer.EnvironmentVariable]
    network: bool
    def __init__(self, configuration: _Optional[_Union[Configuration, _Mapping]] = ..., instance: _Optional[str] = ..., backend: _Optional[str] = ..., rootfs: _Optional[str] = ..., data_path: _Optional[str] = ..., image: _Optional[str] = ..., detached: _Optional[bool] = ..., privileged: _Optional[bool] = ..., use_rootfs_overlay: _Optional[bool] = ..., force_squashfuse: _Optional[bool] = ..., init: _Optional[_Iterable[str]] = ..., environment: _Optional[_Iterable[_Union[StartContainer.EnvironmentVariable, _Mapping]]] = ..., network: _Optional[bool] = ...) -> None: ...

class StopContainer(_message.Message):
    __slots__ = ("force", "instance")
    FORCE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    force: bool
    instance: str
    def __init__(self, force: _Optional[bool] = ..., instance: _Optional[str] = ...) -> None: ...

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

class ListContainers(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ContainerList(_message.Message):
    __slots__ = ("containers", "error", "structured_error")
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    containers: _containers.RepeatedCompositeFieldContainer[ContainerInfo]
    error: str
    structured_error: StructuredError
    def __init__(self, containers: _Optional[_Iterable[_Union[ContainerInfo, _Mapping]]] = ..., error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...

class ContainerInfoRequest(_message.Message):
    __slots__ = ("instance",)
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    def __init__(self, instance: _Optional[str] = ...) -> None: ...

class ContainerInfo(_message.Message):
    __slots__ = ("instance", "backend", "state", "phase", "owner_uid", "owner_gid", "pid", "address", "rootfs", "data_path", "detached", "started_at", "failure", "details", "guest_sockets", "error", "structured_error")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    OWNER_UID_FIELD_NUMBER: _ClassVar[int]
    OWNER_GID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROOTFS_FIELD_NUMBER: _ClassVar[int]
    DATA_PATH_FIELD_NUMBER: _ClassVar[int]
    DETACHED_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    GUEST_SOCKETS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    instance: str
    backend: str
    state: str
    phase: str
    owner_uid: int
    owner_gid: int
    pid: int
    address: str
    rootfs: str
    data_path: str
    detached: bool
    started_at: float
    failure: str
    details: str
    guest_sockets: str
    error: str
    structured_error: StructuredError
    def __init__(self, instance: _Optional[str] = ..., backend: _Optional[str] = ..., state: _Optional[str] = ..., phase: _Optional[str] = ..., owner_uid: _Optional[int] = ..., owner_gid: _Optional[int] = ..., pid: _Optional[int] = ..., address: _Optional[str] = ..., rootfs: _Optional[str] = ..., data_path: _Optional[str] = ..., detached: _Optional[bool] = ..., started_at: _Optional[float] = ..., failure: _Optional[str] = ..., details: _Optional[str] = ..., guest_sockets: _Optional[str] = ..., error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...

class WatchContainers(_message.Message):
    __slots__ = ("instance",)
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    def __init__(self, instance: _Optional[str] = ...) -> None: ...

class ContainerEvent(_message.Message):
    __slots__ = ("instance", "state", "phase", "detail", "timestamp", "error", "structured_error")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    instance: str
    state: str
    phase: str
    detail: str
    timestamp: float
    error: str
    structured_error: StructuredError
    def __init__(self, instance: _Optional[str] = ..., state: _Optional[str] = ..., phase: _Optional[str] = ..., detail: _Optional[str] = ..., timestamp: _Optional[float] = ..., error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...

class ManagerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ManagerInfo(_message.Message):
    __slots__ = ("version", "pid", "default_backend", "backends", "data_path", "root", "error", "structured_error")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_BACKEND_FIELD_NUMBER: _ClassVar[int]
    BACKENDS_FIELD_NUMBER: _ClassVar[int]
    DATA_PATH_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    default_backend: str
    backends: _containers.RepeatedScalarFieldContainer[str]
    data_path: str
    root: bool
    error: str
    structured_error: StructuredError
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., default_backend: _Optional[str] = ..., backends: _Optional[_Iterable[str]] = ..., data_path: _Optional[str] = ..., root: _Optional[bool] = ..., error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...
