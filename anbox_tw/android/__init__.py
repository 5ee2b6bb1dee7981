"""What Android's init, installd and local sockets are to the programs that use them.

* ``rc``: the init language; ``init``: the supervisor that runs it; ``properties``: its property service.
* ``endpoints``, ``localsocket``: sockets in Android's three namespaces, and those that init hands over.
* ``installd``: the daemon that keeps the data tree of applications, and its client.
"""
