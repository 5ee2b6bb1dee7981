"""Check the news fragments: known types, a slug, some text; and that the changelog can be built from them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FRAGMENTS = Path("docs/newsfragments")
NAME = re.compile(r"[a-z0-9][a-z0-9-]*\.(feature|bugfix|doc|removal|misc)\.md")


def main() -> int:
    """Exit code: 0 when every fragment is good."""
    wrong = []
    for path in sorted(FRAGMENTS.iterdir()):
        if path.name == "README.md":
            continue
        if not NAME.fullmatch(path.name):
            wrong.append(f"{path}: not <slug>.<feature|bugfix|doc|removal|misc>.md")
        elif len(path.read_text().strip()) < 20:
            wrong.append(f"{path}: says nothing")
    for line in wrong:
        print(line, file=sys.stderr)
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "next"]
    draft = subprocess.run(command, capture_output=True, text=True, check=False)
    if draft.returncode:
        print(draft.stderr or draft.stdout, file=sys.stderr)
    return 1 if wrong or draft.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
