"""The ``input.*`` verbs of the control socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anbox_tw.device import BadValue, InputDevice, InputEvent
from anbox_tw.device.event_codes import code_number, type_number
from anbox_tw.device.gestures import DEFAULT_RATE_HZ, KEY_S, TAP_S, TYPING_S, keys_of
from anbox_tw.device.injector import Injector
from anbox_tw.session.errors import BadRequest
from anbox_tw.session.input.server import InputServer
from anbox_tw.session.verbs import DeviceVerbs

__all__ = ["register_input_verbs"]

MAX_PATHS = 10
MAX_KEYS = 1000


def register_input_verbs(verbs: DeviceVerbs, injector: Injector, server: InputServer) -> None:
    """Let the control socket inject input.

    Args:
        verbs: of the session.
        injector: plays the gestures.
        server: told of by ``input.devices``.
    """
    handlers = _InputVerbs(injector, server)
    for name in ("tap", "swipe", "multitouch", "pinch", "text", "key", "mouse", "event", "devices"):
        verbs.register(f"input.{name}", getattr(handlers, name))


class _InputVerbs:
    """Each answers when its gesture is done."""

    def __init__(self, injector: Injector, server: InputServer) -> None:
        self._injector = injector
        self._server = server

    async def tap(self, x: float, y: float, hold: float = TAP_S, count: int = 1) -> None:
        """Touch and leave."""
        _numbers(x=x, y=y, hold=hold, count=count)
        await self._injector.tap(x, y, hold=hold, count=count)

    async def swipe(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        duration: float = 0.3,
        rate: float = DEFAULT_RATE_HZ,
        hold: float = 0.0,
    ) -> None:
        """Touch, move and leave."""
        _numbers(x1=x1, y1=y1, x2=x2, y2=y2, duration=duration, rate=rate, hold=hold)
        await self._injector.swipe(x1, y1, x2, y2, duration=duration, rate=rate, hold=hold)

    async def multitouch(
        self,
        paths: Sequence[Sequence[Sequence[float]]],
        duration: float = 0.3,
        rate: float = DEFAULT_RATE_HZ,
        hold: float = 0.0,
    ) -> None:
        """Several fingers: of each the corners of its path."""
        _numbers(duration=duration, rate=rate, hold=hold)
        if not isinstance(paths, list) or not all(isinstance(path, list) for path in paths):
            raise BadRequest("paths must be a list of lists of [x, y]")
        if len(paths) > MAX_PATHS:
            raise BadRequest(f"{len(paths)} fingers are too many", f"give at most {MAX_PATHS}")
        fingers = [[_point(point) for point in path] for path in paths]
        await self._injector.multitouch(fingers, duration=duration, rate=rate, hold=hold)

    async def pinch(
        self,
        x: float,
        y: float,
        start: float,
        end: float,
        duration: float = 0.4,
        angle: float = 0.0,
        rate: float = DEFAULT_RATE_HZ,
    ) -> None:
        """Two fingers together or apart."""
        _numbers(x=x, y=y, start=start, end=end, duration=duration, angle=angle, rate=rate)
        await self._injector.pinch(x, y, start, end, duration=duration, angle=angle, rate=rate)

    async def text(self, text: str, interval: float = TYPING_S) -> None:
        """Type."""
        _numbers(interval=interval)
        if not isinstance(text, str):
            raise BadRequest("text must be text")
        await self._injector.text(text, interval=interval)

    async def key(
        self, key: str | int | Sequence[str | int], action: str = "press", hold: float = KEY_S
    ) -> None:
        """``press``, ``down`` or ``up``: a key, or one after another of a list."""
        _numbers(hold=hold)
        keys: list[Any] = key if isinstance(key, list) else [key]
        if not all(isinstance(one, str | int) and not isinstance(one, bool) for one in keys):
            raise BadRequest("key must be a name, a number, or a list of these")
        if len(keys) > MAX_KEYS:
            raise BadRequest(f"{len(keys)} keys are too many", f"give at most {MAX_KEYS} at once")
        if action not in ("press", "down", "up"):
            raise BadRequest(f"a key cannot {action!r}", "it is press, down or up")
        for one in keys:
            keys_of(one)  # all or none
        for one in keys:
            if action == "press":
                await self._injector.press(one, hold=hold)
            else:
                self._injector.key(one, action == "down")

    async def mouse(
        self,
        action: str,
        x: float | None = None,
        y: float | None = None,
        button: str = "left",
        clicks: int = 1,
        horizontal: int = 0,
    ) -> None:
        """``move``, ``down``, ``up``, ``click`` or ``wheel``, after moving where ``x`` and ``y`` say."""
        if (x is None) != (y is None):
            raise BadRequest("give both x and y, or neither")
        if action not in ("move", "down", "up", "click", "wheel"):
            raise BadRequest(f"a mouse cannot {action!r}", "it is move, down, up, click or wheel")
        _numbers(clicks=clicks, horizontal=horizontal)
        if x is not None and y is not None:
            _numbers(x=x, y=y)
            self._injector.mouse_move(x, y)
        if action in ("down", "click"):
            self._injector.mouse_button(button, True)
        if action in ("up", "click"):
            self._injector.mouse_button(button, False)
        if action == "wheel":
            self._injector.wheel(clicks, horizontal)

    async def event(self, device: str | int, events: Sequence[Mapping[str, Any] | Sequence[Any]]) -> None:
        """Raw events, each ``[type, code, value]`` with names or numbers."""
        if not isinstance(events, list):
            raise BadRequest("events must be a list of [type, code, value]")
        self._injector.raw(_device(device), [_event(one) for one in events])

    def devices(self) -> list[dict[str, Any]]:
        """What is served, and who reads."""
        return self._server.describe()


def _numbers(**values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRequest(f"{name} must be a number, not {value!r}")


def _point(point: Any) -> tuple[float, float]:
    if not isinstance(point, list) or len(point) != 2:
        raise BadRequest(f"{point!r} is no position", "give [x, y]")
    _numbers(x=point[0], y=point[1])
    return (point[0], point[1])


def _device(name: str | int) -> InputDevice:
    for device in InputDevice:
        if name in (device.value, device.name.lower(), f"event{device.value}", str(device.value)):
            return device
    raise BadRequest(
        f"there is no input device {name!r}", f"there are {', '.join(d.name.lower() for d in InputDevice)}"
    )


def _event(triple: Any) -> InputEvent:
    if not isinstance(triple, list) or len(triple) != 3:
        raise BadRequest(f"{triple!r} is no event", "give [type, code, value]")
    kind, code, value = triple
    try:
        kind = type_number(kind) if isinstance(kind, str) else kind
        code = code_number(kind, code) if isinstance(code, str) else code
        value = int(value, 0) if isinstance(value, str) else value
    except ValueError as error:
        raise BadValue(f"{triple!r}: {error}") from error
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in (kind, code, value)):
        raise BadRequest(f"{triple!r} is no event", "give [type, code, value], names or whole numbers")
    return InputEvent(kind, code, value)
