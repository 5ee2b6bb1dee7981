"""The hardware's verbs of the control socket's ``device`` call; ``docs/device.md`` has the table.

Every method named ``GROUP_VERB`` is the verb ``GROUP.VERB`` (a second ``_`` stays); its arguments are the verb's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anbox_tw.device import SENSORS, BadValue, Fix
from anbox_tw.device.location import GOOD_SATELLITES
from anbox_tw.session.errors import BadRequest
from anbox_tw.session.players import read_text

if TYPE_CHECKING:
    from anbox_tw.session.hardware import Hardware

__all__ = ["HardwareVerbs"]


class HardwareVerbs:
    """The verbs.

    Args:
        hardware: what they work on.
    """

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._device = hardware.device

    # -- network --

    def network_speed(self, speed: str) -> dict[str, Any]:
        """Limit it: a profile's name, ``KBITS`` or ``UP:DOWN`` in kilobits per second; the result is ``network.status``."""
        self._device.network.set_speed(speed)
        return self.network_status()

    def network_delay(self, delay: str) -> dict[str, Any]:
        """Make round trips longer: a profile's name, ``MS`` or ``MIN:MAX``; the result is ``network.status``."""
        self._device.network.set_delay(delay)
        return self.network_status()

    def network_status(self) -> dict[str, Any]:
        """``upload`` and ``download`` in bits per second, ``min_delay`` and ``max_delay`` in milliseconds (0 is none), the
        profiles' names ``speed`` and ``delay``, and how many bytes were held up: ``shaped_up`` and ``shaped_down``.
        """
        shaper = self._hardware.shaper
        return {
            **self._device.network.as_dict(),
            "shaped_up": shaper.from_guest.passed,
            "shaped_down": shaper.to_guest.passed,
        }

    # -- sensors --

    def sensor_list(self) -> list[dict[str, Any]]:
        """All sensors in the order of their bits.

        Returns:
            For each ``name``, ``bit``, ``unit``, ``enabled`` (whether the device has it), ``values`` (None where it has
            not) and ``delay_ms`` (of the guest that reads it fastest, None when nobody does).
        """
        sensors, delays = self._device.sensors, self._hardware.sensors.listeners()
        return [
            {
                "name": name,
                "bit": kind.bit,
                "unit": kind.unit,
                "enabled": sensors.enabled(name),
                "values": list(sensors.get(name)) if sensors.enabled(name) else None,
                "delay_ms": round(delays[name] * 1000) if name in delays else None,
            }
            for name, kind in SENSORS.items()
        ]

    def sensor_status(self) -> dict[str, bool]:
        """Which sensors the device has: name to whether it is enabled, as the console's ``sensor status``."""
        return {name: self._device.sensors.enabled(name) for name in SENSORS}

    def sensor_get(self, name: str) -> dict[str, Any]:
        """One sensor: ``name``, ``values`` and ``unit``."""
        values = self._device.sensors.get(name)
        return {"name": name, "values": list(values), "unit": SENSORS[name].unit}

    def sensor_set(self, name: str, values: Sequence[float | None]) -> dict[str, Any]:
        """Set a sensor's values; null, and what is missing at the end, stays as it is. Returns as ``sensor.get``."""
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise BadRequest("sensor.set: values must be a list of numbers")
        for value in values:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise BadRequest(f"sensor.set: {value!r} is no number")
        self._device.sensors.set(name, values)
        return self.sensor_get(name)

    # -- location --

    def geo_fix(
        self,
        longitude: float,
        latitude: float,
        altitude: float = 0.0,
        satellites: int = GOOD_SATELLITES,
        speed: float = 0.0,
        bearing: float = 0.0,
        time: float | None = None,
    ) -> dict[str, Any]:
        """Be somewhere: degrees, metres, metres per second; ends a route that plays. Returns the location."""
        try:
            fix = Fix(
                latitude=latitude,
                longitude=longitude,
                altitude=altitude,
                satellites=satellites,
                speed=speed,
                bearing=bearing,
                time=time,
            )
        except (TypeError, ValueError) as error:
            raise BadValue(f"geo.fix: {error}") from None
        self._hardware.route.stop()
        self._device.location.set_fix(fix)
        return self._device.location.as_dict()

    def geo_nmea(self, sentence: str) -> None:
        """Give the guest an NMEA sentence as it is; the last fix is not repeated any more until there is a new one."""
        if not isinstance(sentence, str):
            raise BadRequest("geo.nmea: the sentence must be a text")
        self._device.location.push_sentence(sentence)

    async def geo_route(
        self,
        path: str = "",
        text: str = "",
        format: str = "",
        rate: float = 1.0,
        speed: float = 0.0,
        factor: float = 1.0,
        repeat: bool = False,
    ) -> dict[str, Any]:
        """Move along a route; one that plays is replaced.

        Args:
            path: absolute, of a GPX, NMEA, CSV or JSON file.
            text: of such a file, instead of a path.
            format: ``gpx``, ``nmea``, ``csv`` or ``json``; found out when it is empty.
            rate: positions per second.
            speed: metres per second, instead of the times in the file.
            factor: 2 plays twice as fast.
            repeat: begin again at its end.

        Returns:
            As ``geo.status``.
        """
        for name, value in (("rate", rate), ("speed", speed), ("factor", factor)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BadRequest(f"geo.route: the {name} must be a number")
        read = await self._text("geo.route", path, text)
        await self._hardware.route.play_text(
            read, format=format, rate=rate, speed=speed, factor=factor, repeat=repeat
        )
        return self.geo_status()

    def geo_pause(self) -> dict[str, Any]:
        """Stand still on the route. Returns as ``geo.status``."""
        self._hardware.route.pause()
        return self.geo_status()

    def geo_resume(self) -> dict[str, Any]:
        """Go on after ``geo.pause``. Returns as ``geo.status``."""
        self._hardware.route.resume()
        return self.geo_status()

    def geo_stop(self) -> dict[str, Any]:
        """Leave the route where it is now. Returns as ``geo.status``."""
        self._hardware.route.stop()
        return self.geo_status()

    def geo_status(self) -> dict[str, Any]:
        """``location`` (the last fix), ``route`` (state, position, duration in seconds, ...), ``guests`` that listen."""
        return {
            "location": self._device.location.as_dict(),
            "route": self._hardware.route.status(),
            "guests": self._hardware.gps.guests,
        }

    # -- fingerprint --

    def finger_touch(self, finger: int = 1) -> dict[str, Any]:
        """Put a finger, by its number from 1, on the sensor. Returns the fingerprint part."""
        self._device.fingerprint.touch(finger)
        return self._device.fingerprint.as_dict()

    def finger_remove(self) -> dict[str, Any]:
        """Take the finger away. Returns the fingerprint part."""
        self._device.fingerprint.remove()
        return self._device.fingerprint.as_dict()

    def finger_status(self) -> dict[str, Any]:
        """The fingerprint part: ``finger`` is the number of the one that touches, or null."""
        return self._device.fingerprint.as_dict()

    # -- what the guest does with its hardware --

    def hw_status(self) -> dict[str, Any]:
        """What the guest said of its screen and lights: the display part."""
        return self._device.display.as_dict()

    # -- cameras --

    def camera_list(self) -> list[dict[str, Any]]:
        """The cameras, back and front.

        Returns:
            For each ``name``, ``direction``, ``source``, ``sizes``, whether a guest has ``connected`` it, how many ``frames``
            were given, and ``capture``, which is null or the ``size`` and ``format`` that were started.
        """
        return [camera.describe() for camera in self._hardware.camera.cameras.values()]

    def camera_set(self, camera: str, source: str) -> dict[str, Any]:
        """Show something else, from the guest's next start on.

        Args:
            camera: ``back`` or ``front``.
            source: ``test-pattern``, ``none``, ``image:PATH`` or ``video:PATH``; paths are absolute.
        """
        found = self._hardware.camera.cameras.get(camera)
        if found is None:
            raise BadRequest(f"there is no camera {camera!r}", "there are back and front")
        kind, colon, path = str(source).partition(":")
        if kind in ("image", "video") and colon and not path.startswith("/"):
            raise BadRequest(f"camera.set: the path {path!r} is not absolute")
        found.source = self._hardware.make_camera_source(source)
        return found.describe()

    # -- scenarios --

    async def scenario_start(
        self, path: str = "", text: str = "", format: str = "", factor: float = 1.0, repeat: bool = False
    ) -> dict[str, Any]:
        """Play a scenario; one that plays is replaced, and nothing is when it has a mistake.

        Args:
            path: absolute, of a TOML or JSON-lines file.
            text: of such a file, instead of a path.
            format: ``toml`` or ``jsonl``; found out when it is empty.
            factor: 2 plays twice as fast.
            repeat: begin again at its end.

        Returns:
            As ``scenario.status``.
        """
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise BadRequest("scenario.start: the factor must be a number")
        read = await self._text("scenario.start", path, text)
        await self._hardware.scenario.play_text(read, format=format, factor=factor, repeat=repeat)
        return self.scenario_status()

    async def scenario_check(self, path: str = "", text: str = "", format: str = "") -> dict[str, Any]:
        """See whether a scenario could be played: ``name``, ``steps``, ``duration`` in seconds; an error names the lines."""
        scenario = await self._hardware.scenario.read(await self._text("scenario.check", path, text), format)
        return {
            "name": scenario.name,
            "steps": sum(step.times for step in scenario.steps),
            "duration": scenario.duration,
        }

    def scenario_stop(self) -> dict[str, Any]:
        """End it; the device stays as it is. Returns as ``scenario.status``."""
        self._hardware.scenario.stop()
        return self.scenario_status()

    def scenario_pause(self) -> dict[str, Any]:
        """Hold it. Returns as ``scenario.status``."""
        self._hardware.scenario.pause()
        return self.scenario_status()

    def scenario_resume(self) -> dict[str, Any]:
        """Go on after ``scenario.pause``. Returns as ``scenario.status``."""
        self._hardware.scenario.resume()
        return self.scenario_status()

    def scenario_status(self) -> dict[str, Any]:
        """``state`` (none, playing, paused, finished, stopped), ``position`` and ``duration`` in seconds, ``name``, ``steps``,
        ``done``, ``failed`` and the last ``errors``."""
        return self._hardware.scenario.status()

    async def _text(self, verb: str, path: str, text: str) -> str:
        if bool(path) == bool(text):
            raise BadRequest(f"{verb}: give either a path or a text")
        return await read_text(path) if path else text
