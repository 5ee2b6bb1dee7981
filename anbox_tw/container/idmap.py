"""User and group id maps of unprivileged containers.

The table is that of Anbox (``src/anbox/container/lxc_container.cpp``) with two defects mended: there
id 999 was mapped to nothing, and the last id fell outside the range that begins at 100000. Android's
``system`` (1000) is the user for whom the container runs, so that what Android's system server makes
in shared places belongs to that user.
"""

from __future__ import annotations

import attrs

__all__ = ["BASE_ID", "ID_COUNT", "SYSTEM_ID", "IdMap", "IdRange", "idmap_for"]

BASE_ID = 100_000
"""The host's id of the container's root."""

ID_COUNT = 100_000
"""How many ids a container has: Android's end with user 0's isolated processes at 99999."""

SYSTEM_ID = 1000
"""``AID_SYSTEM`` in Android's ``system/core/include/private/android_filesystem_config.h``."""

OVERFLOW_ID = 65_534
"""What the kernel shows for an id that is not mapped."""


@attrs.frozen
class IdRange:
    """Consecutive ids.

    Attributes:
        container: the first id inside.
        host: the id outside that it is.
        count: how many.
    """

    container: int
    host: int
    count: int


@attrs.frozen
class IdMap:
    """The id map of one container; empty for a privileged one.

    Attributes:
        uids: ranges of user ids.
        gids: ranges of group ids.
    """

    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()

    def __bool__(self) -> bool:
        """There is a map: the container's root is not the host's."""
        return bool(self.uids)

    @property
    def root_uid(self) -> int:
        """The host's uid of the container's root."""
        return self.host_uid(0)

    @property
    def root_gid(self) -> int:
        """The host's gid of the container's root."""
        return self.host_gid(0)

    def host_uid(self, uid: int) -> int:
        """The host's uid of the container's ``uid``; 65534 if it has none."""
        return _to_host(self.uids, uid)

    def host_gid(self, gid: int) -> int:
        """The host's gid of the container's ``gid``; 65534 if it has none."""
        return _to_host(self.gids, gid)

    def maps_uid(self, host: int) -> bool:
        """The host's user ``host`` is known in the container."""
        return _is_mapped(self.uids, host)

    def maps_gid(self, host: int) -> bool:
        """The host's group ``host`` is known in the container."""
        return _is_mapped(self.gids, host)


def _to_host(ranges: tuple[IdRange, ...], number: int) -> int:
    if not ranges:
        return number
    for each in ranges:
        if each.container <= number < each.container + each.count:
            return each.host + number - each.container
    return OVERFLOW_ID


def _is_mapped(ranges: tuple[IdRange, ...], host: int) -> bool:
    return not ranges or any(each.host <= host < each.host + each.count for each in ranges)


def _ranges(owner: int) -> tuple[IdRange, ...]:
    if owner == 0 or BASE_ID <= owner < BASE_ID + ID_COUNT:
        # The host's root is never given to a container, and a range may not be mapped twice.
        return (IdRange(0, BASE_ID, ID_COUNT),)
    return (
        IdRange(0, BASE_ID, SYSTEM_ID),
        IdRange(SYSTEM_ID, owner, 1),
        IdRange(SYSTEM_ID + 1, BASE_ID + SYSTEM_ID + 1, ID_COUNT - SYSTEM_ID - 1),
    )


def idmap_for(owner_uid: int, owner_gid: int, *, privileged: bool = False) -> IdMap:
    """The map of a container that runs for a user.

    Args:
        owner_uid: uid of that user; for root there is no special row.
        owner_gid: gid of that user.
        privileged: no map at all.
    """
    return IdMap() if privileged else IdMap(_ranges(owner_uid), _ranges(owner_gid))
