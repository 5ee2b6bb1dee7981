"""The verb ``stats``: what is connected to a session, and how many bytes have gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anbox_tw.session.service import SessionService

__all__ = ["register_stats"]

MAX_LISTED = 200
"""Connections that are described; all are counted."""


def register_stats(session: SessionService) -> None:
    """Give a session its verb ``stats``.

    It answers ``connections`` (socket to count), ``refused`` (likewise, those that found no room), ``list`` (of up to 200
    each ``socket``, ``id``, ``protocol`` and ``age`` in seconds), ``adb`` and ``forwards`` (each ``connections``,
    ``to_guest``, ``from_guest``: bytes since the session began).
    """

    def stats() -> dict[str, Any]:
        listeners = {listener.connections.name: listener.connections for listener in session.listeners}
        to_guest, from_guest = session.adb.traffic()
        forwards = [forward.count() for forward in session.forwards]
        return {
            "connections": {name: len(connections) for name, connections in listeners.items()},
            "refused": {name: connections.refused for name, connections in listeners.items()},
            "list": [
                {"socket": name, "id": one["id"], "protocol": one["protocol"], "age": one["age"]}
                for name, connections in listeners.items()
                for one in connections.describe()
            ][:MAX_LISTED],
            "adb": {"connections": session.adb.joined, "to_guest": to_guest, "from_guest": from_guest},
            "forwards": {
                "connections": sum(forward.open for forward in session.forwards),
                "to_guest": sum(one for one, _ in forwards),
                "from_guest": sum(other for _, other in forwards),
            },
        }

    session.verbs.register("stats", stats)
