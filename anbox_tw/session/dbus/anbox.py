"""``/org/anbox``: the original's interfaces, and the device.

Names, types and error names are those of the original (``src/anbox/dbus``). ``org.anbox.Device`` is ours: it reaches
everything that the session's control socket does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from anbox_tw.device import SENSORS
from anbox_tw.device.errors import BadValue, DeviceError, SensorDisabled
from anbox_tw.errors import ConfigError
from anbox_tw.rpc import CallTimedOut
from anbox_tw.session.dbus.interfaces import Interface, Method, Property, Signal
from anbox_tw.session.dbus.objects import BusError
from anbox_tw.session.errors import BadRequest, GuestNotConnected, NotReadyYet
from anbox_tw.session.windows import STACKS

if TYPE_CHECKING:
    from anbox_tw.session.service import SessionService

__all__ = ["PATH", "SENSOR_NAMES", "anbox_interfaces", "bus_name", "error_name"]

PATH = "/org/anbox"

APPLICATION_MANAGER = "org.anbox.ApplicationManager"
SENSORS_INTERFACE = "org.anbox.Sensors"
DEVICE = "org.anbox.Device"

INVALID_ARGUMENT = "org.anbox.InvalidArgument"
INTERNAL_ERROR = "org.anbox.InternalError"
SENSOR_DISABLED = "org.anbox.SensorDisabled"

SENSOR_NAMES: Mapping[str, str] = {
    "Acceleration": "acceleration",
    "MagneticField": "magnetic-field",
    "Orientation": "orientation",
    "Temperature": "temperature",
    "Proximity": "proximity",
    "Light": "light",
    "Pressure": "pressure",
    "Humidity": "humidity",
}
"""Property to sensor of the device model."""

MAX_JSON_CHARS = 1 << 18
"""Of a request's JSON."""


def bus_name(instance: str) -> str:
    """The well-known name of an instance: ``org.anbox`` for the default one, ``org.anbox.NAME`` for others.

    An element of a bus name does not begin with a digit: it gets a ``_`` before it, which no instance begins with.
    """
    if instance == "default":
        return "org.anbox"
    return f"org.anbox.{'_' if instance[0].isdigit() else ''}{instance}"


def error_name(error: Exception) -> str:
    """The original's name for an error."""
    if isinstance(error, SensorDisabled):
        return SENSOR_DISABLED
    if isinstance(error, DeviceError | BadRequest | ConfigError):
        return INVALID_ARGUMENT
    return INTERNAL_ERROR


def anbox_interfaces(session: SessionService) -> tuple[Interface, ...]:
    """The interfaces of a session's object."""
    return (_application_manager(session), _gps(session), _sensors(session), _device(session))


def _application_manager(session: SessionService) -> Interface:
    async def launch(intent: Mapping[str, Any], stack: str) -> None:
        given = {
            name: intent[name] for name in ("action", "component", "package", "type", "uri") if name in intent
        }
        for name, value in given.items():
            if not isinstance(value, str):
                raise BusError(f"{name} of the intent must be a string", code=INVALID_ARGUMENT)
        if not given.get("package"):
            raise BusError("No package specified", code=INVALID_ARGUMENT)
        try:
            await session.launch(stack=STACKS.get(stack, 0), **given)
        except NotReadyYet as error:
            raise BusError("Anbox not yet ready to launch applications", code=INTERNAL_ERROR) from error
        except GuestNotConnected as error:
            raise BusError("No remote client connected", code=INTERNAL_ERROR) from error
        except CallTimedOut as error:
            raise BusError("RPC call timed out", code=INTERNAL_ERROR) from error

    return Interface(
        APPLICATION_MANAGER,
        (Method("Launch", launch, (("intent", "a{sv}"), ("stack", "s"))),),
        (Property("Ready", "b", lambda: session.state.levels.booted),),
    )


def _gps(session: SessionService) -> Interface:
    return Interface(
        "org.anbox.Gps",
        (Method("PushSentence", session.device.location.push_sentence, (("sentence", "s"),)),),
    )


def _sensors(session: SessionService) -> Interface:
    sensors = session.device.sensors

    def sensor(title: str, name: str) -> Property:
        single = len(SENSORS[name].default) == 1

        def disabled(work: Callable[[], Any]) -> Any:
            try:
                return work()
            except SensorDisabled as error:
                raise BusError(f"{title} sensor is disabled", code=SENSOR_DISABLED) from error
            except BadValue as error:
                raise BusError(error.cause, code=INVALID_ARGUMENT) from error

        def get() -> Any:
            values = disabled(lambda: sensors.get(name))
            return values[0] if single else values

        def put(value: Any) -> None:
            disabled(lambda: sensors.set(name, (value,) if single else value))

        return Property(title, "d" if single else "(ddd)", get, put, lambda: sensors.enabled(name))

    return Interface(
        SENSORS_INTERFACE, (), tuple(sensor(title, name) for title, name in SENSOR_NAMES.items())
    )


def _device(session: SessionService) -> Interface:
    async def call(verb: str, arguments: str) -> str:
        return json.dumps(await session.verbs.run(verb, _object(arguments)), ensure_ascii=False)

    async def put(part: str, values: str) -> str:
        return json.dumps(
            await session.verbs.run("set", {"part": part, "values": _object(values)}), ensure_ascii=False
        )

    async def get(part: str) -> str:
        return json.dumps(await session.verbs.run("get", {"part": part}), ensure_ascii=False)

    return Interface(
        DEVICE,
        (
            Method("Get", get, (("part", "s"),), (("state", "s"),)),
            Method("Set", put, (("part", "s"), ("values", "s")), (("state", "s"),)),
            Method("Call", call, (("verb", "s"), ("arguments", "s")), (("result", "s"),)),
        ),
        (
            Property("Instance", "s", lambda: session.paths.instance, emits="const"),
            Property("Serial", "s", lambda: session.adb.serial, emits="false"),
        ),
        (Signal("Changed", (("part", "s"), ("state", "s"))),),
    )


def _object(text: str) -> dict[str, Any]:
    if len(text) > MAX_JSON_CHARS:
        raise BadRequest(f"the arguments have over {MAX_JSON_CHARS} characters")
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the arguments are no JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadRequest("the arguments must be a JSON object")
    return found
