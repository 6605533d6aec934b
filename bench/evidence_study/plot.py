"""The plot of docs/evidence.md: the difference of the chain from each control, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from .results import AnswerRow

COLOURS = {"FromRoot": "#1f6f8b", "Direct": "#c4662b"}
GREY = "#777777"  # readable on white and on black


STYLE = {"svg.hashsalt": "evidence", "svg.fonttype": "none", "font.size": 9} | dict.fromkeys(
    ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), GREY
)


def draw(rows: Sequence[AnswerRow], file: Path) -> None:
    """Writes an SVG. The same rows give the same bytes."""
    questions = list(dict.fromkeys(map(_question, rows)))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 1.2 + 0.42 * len(questions)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=GREY, linewidth=1)
        for control, shift in (("FromRoot", 0.15), ("Direct", -0.15)):
            shown = [row for row in rows if row.control == control]
            places = [shift - questions.index(_question(row)) for row in shown]
            values, low, high = ([100 * getattr(row, name) for row in shown] for name in ("difference", "low", "high"))
            ends = [[value - end for value, end in zip(values, low, strict=True)],
                    [end - value for value, end in zip(values, high, strict=True)]]  # fmt: skip
            style = {"fmt": "o", "markersize": 4, "capsize": 2, "linewidth": 1.2, "color": COLOURS[control]}
            axes.errorbar(values, places, xerr=ends, label=f"chain minus {control}", **style)
        axes.set_yticks([-place for place in range(len(questions))], questions)
        axes.set_xlabel("points of the metric; right of 0, the chain is better")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, transparent=True, metadata={"Date": None})


def _question(row: AnswerRow) -> str:
    return f"{row.task}, {row.student}{', unlabelled text' if row.transfer == 'yes' else ''}"
