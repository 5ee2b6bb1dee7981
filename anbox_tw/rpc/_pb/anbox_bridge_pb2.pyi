from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
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

class Intent(_message.Message):
    __slots__ = ("action", "uri", "type", "package", "component", "categories")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    action: str
    uri: str
    type: str
    package: str
    component: str
    categories: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, action: _Optional[str] = ..., uri: _Optional[str] = ..., type: _Optional[str] = ..., package: _Optional[str] = ..., component: _Optional[str] = ..., categories: _Optional[_Iterable[str]] = ...) -> None: ...

class Rect(_message.Message):
    __slots__ = ("left", "top", "right", "bottom")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    left: int
    top: int
    right: int
    bottom: int
    def __init__(self, left: _Optional[int] = ..., top: _Optional[int] = ..., right: _Optional[int] = ..., bottom: _Optional[int] = ...) -> None: ...

class ClipboardData(_message.Message):
    __slots__ = ("text", "error", "structured_error")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    text: str
    error: str
    structured_error: StructuredError
    def __init__(self, text: _Optional[str] = ..., error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...

class LaunchApplication(_message.Message):
    __slots__ = ("intent", "launch_bounds", "stack")
    class Stack(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DEFAULT: _ClassVar[LaunchApplication.Stack]
        FULLSCREEN: _ClassVar[LaunchApplication.Stack]
        FREEFORM: _ClassVar[LaunchApplication.Stack]
    DEFAULT: LaunchApplication.Stack
    FULLSCREEN: LaunchApplication.Stack
    FREEFORM: LaunchApplication.Stack
    INTENT_FIELD_NUMBER: _ClassVar[int]
    LAUNCH_BOUNDS_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    intent: Intent
    launch_bounds: Rect
    stack: LaunchApplication.Stack
    def __init__(self, intent: _Optional[_Union[Intent, _Mapping]] = ..., launch_bounds: _Optional[_Union[Rect, _Mapping]] = ..., stack: _Optional[_Union[LaunchApplication.Stack, str]] = ...) -> None: ...

class SetFocusedTask(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class RemoveTask(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class ResizeTask(_message.Message):
    __slots__ = ("id", "resize_mode", "rect")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESIZE_MODE_FIELD_NUMBER: _ClassVar[int]
    RECT_FIELD_NUMBER: _ClassVar[int]
    id: int
    resize_mode: int
    rect: Rect
    def __init__(self, id: _Optional[int] = ..., resize_mode: _Optional[int] = ..., rect: _Optional[_Union[Rect, _Mapping]] = ...) -> None: ...

class BootFinishedEvent(_message.Message):
    __slots__ = ("first_boot_done",)
    FIRST_BOOT_DONE_FIELD_NUMBER: _ClassVar[int]
    first_boot_done: bool
    def __init__(self, first_boot_done: _Optional[bool] = ...) -> None: ...

class WindowStateUpdateEvent(_message.Message):
    __slots__ = ("windows", "removed_windows")
    class WindowState(_message.Message):
        __slots__ = ("display_id", "has_surface", "package_name", "frame_left", "frame_top", "frame_right", "frame_bottom", "task_id", "stack_id")
        DISPLAY_ID_FIELD_NUMBER: _ClassVar[int]
        HAS_SURFACE_FIELD_NUMBER: _ClassVar[int]
        PACKAGE_NAME_FIELD_NUMBER: _ClassVar[int]
        FRAME_LEFT_FIELD_NUMBER: _ClassVar[int]
        FRAME_TOP_FIELD_NUMBER: _ClassVar[int]
        FRAME_RIGHT_FIELD_NUMBER: _ClassVar[int]
        FRAME_BOTTOM_FIELD_NUMBER: _ClassVar[int]
        TASK_ID_FIELD_NUMBER: _ClassVar[int]
        STACK_ID_FIELD_NUMBER: _ClassVar[int]
        display_id: int
        has_surface: bool
        package_name: str
        frame_left: int
        frame_top: int
        frame_right: int
        frame_bottom: int
        task_id: int
        stack_id: int
        def __init__(self, display_id: _Optional[int] = ..., has_surface: _Optional[bool] = ..., package_name: _Optional[str] = ..., frame_left: _Optional[int] = ..., frame_top: _Optional[int] = ..., frame_right: _Optional[int] = ..., frame_bottom: _Optional[int] = ..., task_id: _Optional[int] = ..., stack_id: _Optional[int] = ...) -> None: ...
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    windows: _containers.RepeatedCompositeFieldContainer[WindowStateUpdateEvent.WindowState]
    removed_windows: _containers.RepeatedCompositeFieldContainer[WindowStateUpdateEvent.WindowState]
    def __init__(self, windows: _Optional[_Iterable[_Union[WindowStateUpdateEvent.WindowState, _Mapping]]] = ..., removed_windows: _Optional[_Iterable[_Union[WindowStateUpdateEvent.WindowState, _Mapping]]] = ...) -> None: ...

class ApplicationListUpdateEvent(_message.Message):
    __slots__ = ("applications", "removed_applications")
    class Application(_message.Message):
        __slots__ = ("name", "package", "launch_intent", "icon")
        NAME_FIELD_NUMBER: _ClassVar[int]
        PACKAGE_FIELD_NUMBER: _ClassVar[int]
        LAUNCH_INTENT_FIELD_NUMBER: _ClassVar[int]
        ICON_FIELD_NUMBER: _ClassVar[int]
        name: str
        package: str
        launch_intent: Intent
        icon: bytes
        def __init__(self, name: _Optional[str] = ..., package: _Optional[str] = ..., launch_intent: _Optional[_Union[Intent, _Mapping]] = ..., icon: _Optional[bytes] = ...) -> None: ...
    APPLICATIONS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_APPLICATIONS_FIELD_NUMBER: _ClassVar[int]
    applications: _containers.RepeatedCompositeFieldContainer[ApplicationListUpdateEvent.Application]
    removed_applications: _containers.RepeatedCompositeFieldContainer[ApplicationListUpdateEvent.Application]
    def __init__(self, applications: _Optional[_Iterable[_Union[ApplicationListUpdateEvent.Application, _Mapping]]] = ..., removed_applications: _Optional[_Iterable[_Union[ApplicationListUpdateEvent.Application, _Mapping]]] = ...) -> None: ...

class EventSequence(_message.Message):
    __slots__ = ("boot_finished", "window_state_update", "application_list_update", "error", "structured_error")
    BOOT_FINISHED_FIELD_NUMBER: _ClassVar[int]
    WINDOW_STATE_UPDATE_FIELD_NUMBER: _ClassVar[int]
    APPLICATION_LIST_UPDATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_ERROR_FIELD_NUMBER: _ClassVar[int]
    boot_finished: BootFinishedEvent
    window_state_update: WindowStateUpdateEvent
    application_list_update: ApplicationListUpdateEvent
    error: str
    structured_error: StructuredError
    def __init__(self, boot_finished: _Optional[_Union[BootFinishedEvent, _Mapping]] = ..., window_state_update: _Optional[_Union[WindowStateUpdateEvent, _Mapping]] = ..., application_list_update: _Optional[_Union[ApplicationListUpdateEvent, _Mapping]] = ..., error: _Optional[str] = ..., structured_error: _Optional[_Union[StructuredError, _Mapping]] = ...) -> None: ...
