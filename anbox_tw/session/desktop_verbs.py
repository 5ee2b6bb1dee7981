"""The verbs of applications and tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from anbox_tw.session.bridge import Application

if TYPE_CHECKING:
    from anbox_tw.session.service import SessionService

__all__ = ["register_bridge_verbs"]


def register_bridge_verbs(session: SessionService) -> None:
    """Give a session its verbs ``apps.list``, ``tasks.list``, ``tasks.focus``, ``tasks.remove`` and ``tasks.resize``."""
    windows, desktop, bridge = session.windows, session.desktop, session.bridge

    def describe(app: Application) -> dict[str, Any]:
        plain = attrs.asdict(app, filter=lambda field, _: field.name != "icon")
        return {**plain, "icon_bytes": len(app.icon), "reported": app.package in bridge.applications}

    session.verbs.register("apps.list", lambda: [describe(app) for app in desktop.applications()])
    session.verbs.register("tasks.list", windows.listing)
    session.verbs.register("tasks.focus", windows.focus)
    session.verbs.register("tasks.remove", windows.remove)
    session.verbs.register("tasks.resize", windows.resize)
