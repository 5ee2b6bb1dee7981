"""A relay of asyncio protocols, on its own loop or on uvloop: ``python -m benchmarks.relay_asyncio PORT PATH LOOP``."""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import Any


class Side(asyncio.Protocol):
    """Writes what comes to its peer, and stops reading while the peer's buffer is full."""

    transport: Any = None
    peer: Side | None = None
    early = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.peer is None:
            # uvloop delivers one read to a transport that was paused when it was made
            self.early += data
        else:
            self.peer.transport.write(data)

    def pause_writing(self) -> None:
        assert self.peer is not None
        self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        assert self.peer is not None
        if not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def eof_received(self) -> bool:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()


class Accepted(Side):
    """The accepted side: connects to the target first."""

    def __init__(self, path: str) -> None:
        self.path = path

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.pause_reading()
        self.task = asyncio.get_running_loop().create_task(self.connect())

    async def connect(self) -> None:
        target = Side()
        target.peer = self
        await asyncio.get_running_loop().create_unix_connection(lambda: target, self.path)
        self.peer = target
        if self.early:
            target.transport.write(self.early)
        if not self.transport.is_closing():
            self.transport.resume_reading()


async def serve(port: int, path: str) -> None:
    """Forward a TCP port to a UNIX socket until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Accepted(path), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    main = serve(int(sys.argv[1]), sys.argv[2])
    if sys.argv[3] == "uvloop":
        importlib.import_module("uvloop").run(main)
    else:
        asyncio.run(main)
