"""``python -m anbox_tw.android.setprop NAME VALUE``: as toolbox's setprop, without the ``anbox`` command."""

from __future__ import annotations

import argparse
import sys

from anbox_tw.android.properties.client import set_property
from anbox_tw.errors import AnboxError

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Set one property; says why when it is refused."""
    parser = argparse.ArgumentParser(prog="setprop", description="Set an Android system property.")
    parser.add_argument(
        "--socket-dir", help="where property_service is (default: ANBOX_SOCKET_DIR, /dev/socket)"
    )
    parser.add_argument(
        "--old", action="store_true", help="send the message of Android 7, which has no answer"
    )
    parser.add_argument("name")
    parser.add_argument("value")
    options = parser.parse_args(argv)
    try:
        set_property(options.name, options.value, directory=options.socket_dir, old=options.old)
    except AnboxError as error:
        sys.stderr.write(f"setprop: {error}\n")
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
