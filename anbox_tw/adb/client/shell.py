"""Shells of a device."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import attrs

from anbox_tw.adb import _shell
from anbox_tw.adb._wire import Buffer
from anbox_tw.adb.client._errors import StreamEnded
from anbox_tw.adb.client.streams import ByteStream

__all__ = ["MAX_OUTPUT", "ShellResult", "ShellSession"]

MAX_OUTPUT = 256 << 20
"""What ``run`` collects of each output; read a session in pieces for more."""
INPUT_CHUNK = 64 * 1024


@attrs.frozen
class ShellResult:
    """What a command said.

    Attributes:
        stdout: its output; without shell protocol v2, both outputs.
        stderr: its error output.
        exit_code: its exit status, 128 + N for signal N; None if the device cannot tell.
    """

    stdout: bytes
    stderr: bytes
    exit_code: int | None

    @property
    def text(self) -> str:
        """``stdout`` as text."""
        return self.stdout.decode("utf-8", "replace")


class ShellSession:
    """A running command or interactive shell.

    Args:
        stream: its stream.
        framed: whether it speaks shell protocol v2.

    Attributes:
        exit_code: once it has ended and the device can tell.
    """

    def __init__(self, stream: ByteStream, *, framed: bool) -> None:
        self.stream = stream
        self.framed = framed
        self.exit_code: int | None = None
        self._reader = _shell.ShellReader()
        self._packets: list[tuple[int, Buffer]] = []

    def write(self, data: Buffer) -> None:
        """Type ``data``."""
        if not self.framed:
            self.stream.write(data)
            return
        view = memoryview(data)
        for start in range(0, len(view), INPUT_CHUNK):
            self.stream.write(_shell.encode(_shell.STDIN, view[start : start + INPUT_CHUNK]))

    def close_stdin(self) -> None:
        """Say that no more input comes; without shell protocol v2 there is no way to."""
        if self.framed:
            self.stream.write(_shell.encode(_shell.CLOSE_STDIN))

    def resize(self, rows: int, columns: int, width: int = 0, height: int = 0) -> None:
        """Tell the terminal its size in characters and pixels."""
        if self.framed:
            self.stream.write(_shell.encode_window_size(rows, columns, width, height))

    async def read(self) -> tuple[int, Buffer] | None:
        """The next output as (1 for stdout or 2 for stderr, data); None at the end.

        Raises:
            StreamEnded: the device is gone before the command ended.
        """
        while True:
            while self._packets:
                kind, data = self._packets.pop(0)
                if kind in (_shell.STDOUT, _shell.STDERR):
                    return kind, data
                if kind == _shell.EXIT and data:
                    self.exit_code = data[0]
                    self.stream.close()
                    return None
            if self.exit_code is not None:
                return None
            chunk = await self.stream.read()
            if not chunk:
                if self.framed and self.exit_code is None:
                    raise StreamEnded("the device closed the shell without an exit code")
                return None
            data = bytes(chunk) if isinstance(chunk, memoryview) else chunk
            if self.framed:
                self._packets.extend(self._reader.feed(data))
            else:
                return _shell.STDOUT, data

    async def __aiter__(self) -> AsyncIterator[tuple[int, Buffer]]:
        """All output, as ``read`` gives it."""
        while (item := await self.read()) is not None:
            yield item

    async def feed(self, data: bytes) -> None:
        """Type ``data`` as fast as the device takes it, then close stdin."""
        for start in range(0, len(data), INPUT_CHUNK):
            if self.stream.ended:
                return
            self.write(data[start : start + INPUT_CHUNK])
            await self.stream.drain()
        self.close_stdin()

    async def collect(
        self, on_output: Callable[[int, bytes], None] | None = None, limit: int = MAX_OUTPUT
    ) -> ShellResult:
        """Read to the end.

        Args:
            on_output: gets each piece instead of its being collected.
            limit: bytes to collect at most.

        Raises:
            StreamEnded: the device is gone before, or says more than ``limit``.
        """
        outputs = {_shell.STDOUT: bytearray(), _shell.STDERR: bytearray()}
        while (item := await self.read()) is not None:
            kind, data = item
            if on_output is not None:
                on_output(kind, bytes(data))
                continue
            outputs[kind] += data
            if sum(map(len, outputs.values())) > limit:
                self.stream.abort()
                raise StreamEnded(f"the command says more than {limit} bytes", "read it in pieces")
        return ShellResult(bytes(outputs[_shell.STDOUT]), bytes(outputs[_shell.STDERR]), self.exit_code)

    def close(self) -> None:
        """Hang up."""
        self.stream.abort()
