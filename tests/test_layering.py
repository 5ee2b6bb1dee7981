"""An import may only point down the layers; wire code knows no Twisted; nothing imports the reactor early."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support import REPOSITORY

PACKAGE = REPOSITORY / "anbox_tw"

LAYERS = [
    {"network", "interfaces", "errors", "_limits", "_version"},
    {"device"},
    {"adb", "qemu", "rpc", "console"},
    {"testing"},
    {"container", "session", "android", "netd", "guest"},
    {"cli"},
]

ACROSS = {
    # the container's network is set up through netd's own code
    ("container", "netd"),
    # the guest and the process backend start their services through init
    ("container", "android"),
    ("guest", "android"),
    # the session asks the manager through the manager's client
    ("session", "container"),
    # pipe services forward adb connections
    ("qemu", "adb"),
}

SANS_IO = {"_wire.py", "_framing.py", "_events.py", "_state.py"}


def imports_of(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, module, at module level) for each import in the file."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}", id(node) in top


def layer_of(name: str) -> int:
    for depth, layer in enumerate(LAYERS):
        if name in layer:
            return depth
    raise AssertionError(f"{name} is in no layer: add it to LAYERS")


class LayeringTests(SynchronousTestCase):
    def test_imports_point_down(self) -> None:
        wrong = []
        for path in PACKAGE.rglob("*.py"):
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            if parts[0] == "__init__" or parts[-1].endswith("tap"):
                continue
            for line, module, _ in imports_of(path):
                if not module.startswith("anbox_tw."):
                    continue
                target = module.split(".")[1]
                if target in ("__version__", parts[0]) or (parts[0], target) in ACROSS:
                    continue
                mine, theirs = layer_of(parts[0]), layer_of(target)
                if theirs > mine or (theirs == mine and mine > 0):
                    wrong.append(f"{path.relative_to(REPOSITORY)}:{line} imports {module}")
        self.assertEqual(wrong, [])

    def test_wire_code_knows_no_twisted(self) -> None:
        wrong = [
            f"{path.relative_to(REPOSITORY)}:{line} imports {module}"
            for path in PACKAGE.rglob("*.py")
            if path.name in SANS_IO
            for line, module, _ in imports_of(path)
            if module.startswith("twisted")
        ]
        self.assertEqual(wrong, [])

    def test_nothing_imports_the_reactor_at_module_level(self) -> None:
        wrong = [
            f"{path.relative_to(REPOSITORY)}:{line}"
            for path in PACKAGE.rglob("*.py")
            for line, module, at_top in imports_of(path)
            if at_top and module == "twisted.internet.reactor"
        ]
        self.assertEqual(wrong, [])
