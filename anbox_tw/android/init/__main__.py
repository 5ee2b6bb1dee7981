"""``python -m anbox_tw.android.init``: init as pid 1 of a container (or as any process of its own).

The options are those of ``twistd anbox-init``; signals and exit codes are described in ``process``.
"""

from __future__ import annotations

import sys

from twisted.python import usage

from anbox_tw.android.init.process import run_init
from anbox_tw.android.init_tap import Options, build
from anbox_tw.errors import ExitCode

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run until told to end; returns the exit code."""
    options = Options()
    try:
        options.parseOptions(sys.argv[1:] if argv is None else argv)
    except usage.UsageError as error:
        sys.stderr.write(f"init: {error}\nTry --help.\n")
        return ExitCode.USAGE
    return run_init(lambda reactor, power: build(options, reactor, on_power=power))


if __name__ == "__main__":
    sys.exit(main())
