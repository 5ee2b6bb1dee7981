"""``python -m anbox_tw.android.getprop [NAME [DEFAULT]]``: as toolbox's getprop, without the ``anbox`` command."""

from __future__ import annotations

import argparse
import io
import sys

from anbox_tw.android.properties.client import get_property, list_properties
from anbox_tw.errors import AnboxError

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Print one value, or all as ``[name]: [value]``; an unset property prints an empty line."""
    parser = argparse.ArgumentParser(prog="getprop", description="Print Android system properties.")
    parser.add_argument(
        "--socket-dir", help="where property_service is (default: ANBOX_SOCKET_DIR, /dev/socket)"
    )
    parser.add_argument("name", nargs="?")
    parser.add_argument("default", nargs="?", default="")
    options = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a value need not be text
    try:
        if options.name is None:
            for name, value in list_properties(directory=options.socket_dir).items():
                sys.stdout.write(f"[{name}]: [{value}]\n")
        else:
            sys.stdout.write(get_property(options.name, options.default, directory=options.socket_dir) + "\n")
    except AnboxError as error:
        sys.stderr.write(f"getprop: {error}\n")
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
