"""The diagrams in the manual are those of the code."""

from __future__ import annotations

import importlib.util

from twisted.trial.unittest import SynchronousTestCase

from tests.support import REPOSITORY


class DiagramTests(SynchronousTestCase):
    def test_none_is_stale(self) -> None:
        spec = importlib.util.spec_from_file_location(
            "state_machines", REPOSITORY / "docs" / "state_machines.py"
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for path, text in module.pages().items():
            self.assertTrue(path.exists(), f"run python docs/state_machines.py: {path} is missing")
            self.assertEqual(path.read_text(), text, f"run python docs/state_machines.py: {path} is stale")
        self.assertEqual(set(module.TARGET.glob("*.md")), set(module.pages()))
