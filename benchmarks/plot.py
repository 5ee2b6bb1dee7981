"""The results as a picture, where matplotlib is installed."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from benchmarks.relays import MEASURES


def plot(results: dict[str, Any], caption: str, stem: Path) -> bool:
    """Draw every figure that was measured, a panel each, into ``stem``.svg and ``stem``.png.

    Returns:
        Whether matplotlib was there to do it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    # the same picture from the same figures: no date, no random ids
    matplotlib.rcParams.update({"svg.hashsalt": "anbox-tw", "svg.fonttype": "none"})
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    shown = [measure for measure in MEASURES if any(measure.key in values for values in results.values())]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    names = list(results)[::-1]
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(5.2 * columns, (0.28 * len(names) + 1.1) * rows), squeeze=False
    )
    for panel in panels.flat[len(shown) :]:
        panel.axis("off")
    for measure, panel in zip(shown, panels.flat, strict=False):
        present = [name for name in names if measure.key in results[name]]
        values = [results[name][measure.key]["median"] for name in present]
        colours = ["#1f77b4" if name.startswith("anbox-tw") else "#bbbbbb" for name in present]
        bars = panel.barh(present, values, color=colours)
        panel.bar_label(
            bars,
            labels=[f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in values],
            padding=2,
            fontsize=8,
        )
        panel.set_title(f"{measure.title}, {measure.unit} ({measure.better} is better)", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.margins(x=0.18)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.text(0.01, 0.002, caption, fontsize=7, va="bottom", wrap=True)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    stem.parent.mkdir(exist_ok=True)
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(stem.with_suffix(".png"), dpi=80)
    pyplot.close(figure)
    return True
