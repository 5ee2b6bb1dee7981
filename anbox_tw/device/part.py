"""A part of the device: a state that is replaced as a whole, and who is told.

The model is plain Python with no I/O. A part holds one frozen attrs value, ``state``. ``update`` checks the new values,
replaces the state and tells the observers once; a change that changes nothing tells nobody. What happens without
lasting (a key press, a raw NMEA sentence, a message) is an *event*: ``emit`` tells it and keeps nothing.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Generic, TypeVar

import attrs
from twisted.logger import Logger

from anbox_tw.device.errors import BadValue, UnknownName

__all__ = ["Change", "Observer", "Part", "in_range", "member_of", "plain"]

Kind = TypeVar("Kind", bound=Enum)
State = TypeVar("State", bound=attrs.AttrsInstance)


@attrs.frozen
class Change:
    """What an observer is told.

    Attributes:
        part: name of the part, for example ``battery``.
        kind: ``state``, or the name of an event.
        fields: names of the state's fields that changed; empty for an event.
        value: the part's new state, or what belongs to the event.
    """

    part: str
    kind: str
    fields: frozenset[str]
    value: Any


Observer = Callable[[Change], object]
"""Called in the reactor's thread, in the order of the changes, after the state was replaced."""


class Part(Generic[State]):
    """One part of the device.

    Args:
        state: what it is at first.

    Attributes:
        name: as users write it.
        state: the value now; never changed in place.
    """

    name = ""
    _log = Logger()

    def __init__(self, state: State) -> None:
        self.state = state
        self._observers: list[Observer] = []

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Tell ``observer`` each change from now on; returns what ends that (harmless when called again)."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer) if observer in self._observers else None

    def update(self, **changes: Any) -> State:
        """Replace fields of the state, all or none.

        Returns:
            The new state.

        Raises:
            UnknownName: the part has no such field.
            BadValue: a value does not fit.
        """
        known = {field.name for field in attrs.fields(type(self.state))}
        for name in changes:
            if name not in known:
                raise UnknownName(f"{self.name} has no {name!r}", f"it has {', '.join(sorted(known))}")
        try:
            # mypy wants a concrete attrs class here; the bound of State is as much as there is.
            new = attrs.evolve(self.state, **changes)  # type: ignore[misc]
        except (TypeError, ValueError) as error:
            raise BadValue(f"{self.name}: {error}") from error
        return self.replace(new)

    def replace(self, new: State) -> State:
        """Take ``new`` as the state and tell what is different; returns it."""
        old, self.state = self.state, new
        fields = frozenset(
            field.name
            for field in attrs.fields(type(new))
            if getattr(old, field.name) != getattr(new, field.name)
        )
        if fields:
            self._tell(Change(self.name, "state", fields, new))
        return new

    def emit(self, kind: str, value: Any = None) -> None:
        """Tell an event, which leaves the state as it is."""
        self._tell(Change(self.name, kind, frozenset(), value))

    def as_dict(self) -> dict[str, Any]:
        """The state, JSON-able."""
        return {name: plain(value) for name, value in attrs.asdict(self.state, recurse=False).items()}

    def update_from_text(self, values: Mapping[str, Any]) -> State:
        """``update`` with values as a scenario file, D-Bus or a command line gives them.

        Text becomes what the field holds: numbers, booleans (``on``, ``true``, ``yes``, ``1`` and their opposites),
        enumerations by value.

        Raises:
            UnknownName: likewise.
            BadValue: likewise.
        """
        kinds = typing.get_type_hints(type(self.state))
        return self.update(
            **{name: _converted(self.name, name, kinds.get(name), value) for name, value in values.items()}
        )

    def _tell(self, change: Change) -> None:
        for observer in list(self._observers):
            try:
                observer(change)
            except Exception:
                self._log.failure("An observer of {part} failed", part=self.name)


def plain(value: Any) -> Any:
    """``value`` of a state or an event, made of what JSON has."""
    if isinstance(value, Enum):
        return value.value
    if attrs.has(type(value)):
        return {name: plain(item) for name, item in attrs.asdict(value, recurse=False).items()}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | frozenset | set):
        return [plain(item) for item in value]
    return value


_TRUE = frozenset({"on", "true", "yes", "1"})
_FALSE = frozenset({"off", "false", "no", "0"})


def _converted(part: str, name: str, kind: Any, value: Any) -> Any:
    options = [option for option in typing.get_args(kind) if option is not type(None)] or [kind]
    if value is None or not isinstance(value, str):
        if isinstance(value, bool) or not isinstance(value, int) or float not in options:
            wanted = options[0]
            if isinstance(wanted, type) and issubclass(wanted, Enum) and not isinstance(value, wanted):
                return _converted(part, name, kind, str(value))
            return value
        return float(value)
    wanted = options[0]
    text = value.strip()
    if type(None) in typing.get_args(kind) and text == "":
        return None
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        for member in wanted:
            if text.lower() == str(member.value).lower():
                return member
        raise BadValue(
            f"{part}: {name} cannot be {value!r}", f"it is one of {', '.join(str(m.value) for m in wanted)}"
        )
    if wanted is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise BadValue(f"{part}: {name} cannot be {value!r}", "it is on or off")
    if wanted in (int, float):
        try:
            return wanted(text)
        except ValueError:
            raise BadValue(f"{part}: {name} cannot be {value!r}", "it is a number") from None
    return value


def in_range(low: float, high: float) -> Any:
    """An attrs validator: a finite number from ``low`` to ``high``."""

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{attribute.name} must be a number from {low:g} to {high:g}, not {value!r}")

    return check


def member_of(kind: type[Kind], value: Any) -> Kind:
    """The member of ``kind`` that ``value`` is or names, in any case; for attrs converters.

    Raises:
        ValueError: there is none.
    """
    for member in kind:
        if value is member or str(value).lower() == str(member.value).lower():
            return member
    raise ValueError(f"{value!r} is none of {', '.join(str(member.value) for member in kind)}")
