"""A service's section into what its child process needs to know, and who may grant what."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from anbox_tw.android.aid import decode_id
from anbox_tw.android.errors import RcError
from anbox_tw.android.init.spawn import Launch, SocketLaunch
from anbox_tw.android.rc import RcService, expand

__all__ = ["has_every_id", "plan_launch"]


def plan_launch(
    spec: RcService,
    *,
    environment: Mapping[str, str],
    socket_directory: str,
    console: str | None,
    inherit_output: bool,
    limits: Sequence[tuple[int, int, int]],
    strict: bool,
    get_property: Callable[[str], str] | None,
) -> Launch:
    """Turn names into numbers and put all together.

    Args:
        spec: the section.
        environment: what every service gets; the section's own variables come over it.
        socket_directory: where sockets are made.
        console: the terminal for a service with ``console``.
        inherit_output: it keeps our standard output and error.
        limits: resource limits: number, soft, hard.
        strict: what the kernel refuses ends the child.
        get_property: gives a property's value; the arguments behind the program are expanded with it, as in
            ``Service::Start`` of Android 7's ``init/service.cpp``. None leaves them as they are.
    """
    unknown: list[str] = []
    argv, failure = list(spec.arguments[:1]), ""
    try:
        argv += [expand(word, get_property) if get_property else word for word in spec.arguments[1:]]
    except RcError as error:
        failure = error.cause

    def number(text: str, group: bool) -> int:
        if not text:
            return 0
        found = decode_id(text, group=group, host=True)
        if found is None:
            unknown.append(f"{'group' if group else 'user'} '{text}'")
        return found or 0

    return Launch(
        argv=argv,
        failure=failure,
        environment={**environment, **dict(spec.environment)},
        sockets=[
            SocketLaunch(
                socket.name,
                socket.type,
                socket.mode,
                decode_id(socket.user, host=True) if socket.user else 0,
                decode_id(socket.group, group=True, host=True) if socket.group else 0,
            )
            for socket in spec.sockets
        ],
        socket_directory=socket_directory,
        writepid=spec.writepid,
        ioprio=spec.ioprio,
        console=console if spec.console else None,
        inherit_output=inherit_output,
        uid=number(spec.user, False),
        gid=number(spec.group, True),
        groups=[number(group, True) for group in spec.supplementary],
        unknown=unknown,
        limits=limits,
        seclabel=spec.seclabel,
        strict=strict,
    )


def has_every_id() -> bool:
    """Whether we are a root that may become anybody: uid 0 with all of Android's ids mapped."""
    if os.geteuid() != 0:
        return False
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
    except (OSError, ValueError):
        return True
    return any(first == 0 and count >= 65536 for first, _, count in ranges)
