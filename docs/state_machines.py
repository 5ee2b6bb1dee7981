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

TABLES = {
    # page: (title, module, attribute with a dict of (state, input) to state, whose first key is the beginning)
    "session": ("A session and its container", "anbox_tw.session._state", "TRANSITIONS"),
}


def draw_machine(title: str, module: str, attribute: str) -> str:
    """The page of one Automat machine.

    An input that keeps the state is left out: it changes nothing that users see.
    """
    machine = getattr(importlib.import_module(module), attribute)
    automaton = machine.__automat_automaton__
    edges: dict[tuple[str, str], set[str]] = {}
    for old, name, new, _ in automaton.allTransitions():
        if old.name != new.name:
            edges.setdefault((old.name, new.name), set()).add(name.strip("_").replace("_", " "))
    return _page(title, module, automaton.initialState.name, edges)


def draw_table(title: str, module: str, attribute: str) -> str:
    """The page of one table of enum members."""
    table = getattr(importlib.import_module(module), attribute)
    edges: dict[tuple[str, str], set[str]] = {}
    for (old, event), new in table.items():
        edges.setdefault((old.value, new.value), set()).add(event.value)
    return _page(title, module, next(iter(table))[0].value, edges)


def _page(title: str, module: str, initial: str, edges: dict[tuple[str, str], set[str]]) -> str:
    lines = [
        f"# {title}",
        "",
        f"Drawn by `docs/state_machines.py` from `{module}`; do not edit.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {initial}",
    ]
    for (old, new), names in sorted(edges.items()):
        lines.append(f"    {old} --> {new}: {', '.join(sorted(names))}")
    return "\n".join([*lines, "```", ""])


def pages() -> dict[Path, str]:
    """Every page's path and text."""
    drawn = {name: draw_machine(*machine) for name, machine in MACHINES.items()}
    drawn |= {name: draw_table(*table) for name, table in TABLES.items()}
    return {TARGET / f"{name}.md": text for name, text in drawn.items()}


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    for path, text in pages().items():
        path.write_text(text)
        print(path.relative_to(HERE.parent))
