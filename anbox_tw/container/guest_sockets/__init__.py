"""Sockets inside a running container, opened for its owner: no address, NAT or adbd is in the way.

A helper process (`_helper`) keeps the container's network namespace and root directory. It opens and connects sockets
there and passes them on by ``SCM_RIGHTS``. Its clients come through the manager's listener (`service`), which asks the
kernel who they are and hands the connection of an owner to the helper (`gate`); from then on the manager is not
involved. `_wire` has the messages.

Only the standard library is imported by this module, `_wire` and `_helper`: the helper stays small.
"""
