"""The session's input: what the guest finds in ``/dev/input``, and the verbs that inject into it."""

from __future__ import annotations

from anbox_tw.session.input.server import InputServer
from anbox_tw.session.input.verbs import register_input_verbs

__all__ = ["InputServer", "register_input_verbs"]
