"""Both managers in one process: the shortest way to embed a container in an application of your own.

Run it with::

    twistd -n -y tap/anbox.tac

It needs no root: the container is run by the process backend, with the host's own root file system. While it
runs, ``anbox ps`` lists it and ``anbox shell`` opens a shell in it.
"""

from twisted.application.service import Application

from anbox_tw.container import tap as container
from anbox_tw.network import RuntimePaths
from anbox_tw.session import tap as session

paths = RuntimePaths.find()
paths.make_directories()
manager_socket = f"{paths.sockets}/manager"

manager_options = container.Options()
manager_options.parseOptions(["--socket", manager_socket, "--backend", "process"])
session_options = session.Options()
session_options.parseOptions(["--container-manager", manager_socket])

application = Application("anbox")
container.makeService(manager_options).setServiceParent(application)
session.makeService(session_options).setServiceParent(application)
