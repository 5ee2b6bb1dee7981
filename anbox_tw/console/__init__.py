"""The emulator console: the text protocol on the even port below a device's adb port.

`Console` serves it for anything that provides `anbox_tw.interfaces.IConsoleHost`.
"""

from __future__ import annotations

from anbox_tw.console.service import Console

__all__ = ["Console"]
