"""The trial suite; mirrors ``anbox_tw``."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# How long a generated example takes says nothing on a busy machine; and what CI tries is the same each time.
settings.register_profile(
    "anbox-tw",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("ANBOX_TW_REQUIRE_ALL") == "1",
)
settings.load_profile("anbox-tw")
