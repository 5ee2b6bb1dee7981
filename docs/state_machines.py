"""Draws the state machines from the code: ``python docs/state_machines.py`` writes ``docs/state-machines/*.md``.

The pages are Mermaid diagrams, which GitHub and most editors show. Never edit one: a test compares them
with the code.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE / "state-machines"

MACHINES = {
    # page: (title, module, attribute with the automat TypeMachine)
    "container": ("The life of a container", "anbox_tw.container.machine", "MACHINE"),
}


def draw(title: str, module: str, attribute: str) -> str:
    """The page of one machine.

    An input that keeps the state is left out: it changes nothing that users see.
    """
    machine = getattr(importlib.import_module(module), attribute)
    automaton = machine.__automat_automaton__
    edges: dict[tuple[str, str], set[str]] = {}
    for old, name, new, _ in automaton.allTransitions():
        if old.name != new.name:
            edges.setdefault((old.name, new.name), set()).add(name.strip("_").replace("_", " "))
    lines = [
        f"# {title}",
        "",
        f"Drawn by `docs/state_machines.py` from `{module}`; do not edit.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {automaton.initialState.name}",
    ]
    for (old, new), names in sorted(edges.items()):
        lines.append(f"    {old} --> {new}: {', '.join(sorted(names))}")
    return "\n".join([*lines, "```", ""])


def pages() -> dict[Path, str]:
    """Every page's path and text."""
    return {TARGET / f"{name}.md": draw(*machine) for name, machine in MACHINES.items()}


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    for path, text in pages().items():
        path.write_text(text)
        print(path.relative_to(HERE.parent))
