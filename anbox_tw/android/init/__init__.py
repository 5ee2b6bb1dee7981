"""Android's init as a supervisor: sockets, services, actions, properties.

``Init`` is a Twisted service and can live in any application; ``twistd anbox-init`` runs it on a host, and
``python -m anbox_tw.android.init`` as pid 1 of a container.
"""

from anbox_tw.android.init._actions import ActionQueue
from anbox_tw.android.init._state import Flag, ServiceState
from anbox_tw.android.init.spawn import Launch, launch
from anbox_tw.android.init.status import STATUS_SOCKET, StatusService
from anbox_tw.android.init.supervisor import Init, PowerCommand

__all__ = [
    "STATUS_SOCKET",
    "ActionQueue",
    "Flag",
    "Init",
    "Launch",
    "PowerCommand",
    "ServiceState",
    "StatusService",
    "launch",
]
