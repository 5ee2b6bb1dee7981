"""Forwards: listeners of the host whose connections go to sockets of the guest.

`Forwards` keeps them, and is ``session.forwards``. A connection goes the *direct* way, through a socket that the container
manager's helper opens inside the container (`guest`), or by *adb*, as a stream of the guest's adbd (`by_adb`).
"""

from anbox_tw.session.forwards.errors import ForwardError
from anbox_tw.session.forwards.guest import GuestSockets
from anbox_tw.session.forwards.registry import Forward, Forwards
from anbox_tw.session.forwards.specs import Listen, Target, parse_listen, parse_target

__all__ = [
    "Forward",
    "ForwardError",
    "Forwards",
    "GuestSockets",
    "Listen",
    "Target",
    "parse_listen",
    "parse_target",
]
