"""Results as JSON lines, and the table that compares ours with the reference. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .flops import FORMULA

Result = dict[str, Any]

SMALL_STUDENT_GOAL = 0.75  # of the captured reference
LARGE_GOAL = 0.95  # of the compiled reference
MFU_GOAL, MFU_BATCH = 0.35, 128
CAUSAL_GOALS = {"causal-student": 0.40, "causal-teacher": 0.45}  # MFU
OVERHEAD_GOAL_S = 7.5  # half of the 10 to 15 s that a stage took on an H100 in version 0.1


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    what: str
    reference: str
    ours: str
    ratio: float | None
    goal: str
    is_met: bool | None

    def cells(self) -> tuple[str, ...]:
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        met = "-" if self.is_met is None else ("yes" if self.is_met else "no")
        return self.what, self.reference, self.ours, ratio, self.goal, met


def table(results: list[Result], *, is_small: bool) -> str:
    """Markdown: one line for each comparison, then notes and errors."""
    lines = [*_training_lines(results), *_logits_lines(results), *_causal_lines(results), *_overhead_lines(results)]
    rows = [("what", "reference", "ours", "ratio", "goal", "met"), ("---",) * 6, *(line.cells() for line in lines)]
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = [
        f"{_label(result)}: {str(result['error']).strip().splitlines()[-1]}" for result in results if "error" in result
    ]
    if is_small:
        notes.append("Small sizes: these numbers say only that the bench works.")
    notes.append(f"{FORMULA}.")
    return text + "\n\n" + "\n".join(f"- {note}" for note in notes)


def _training_lines(results: list[Result]) -> list[Line]:
    found: list[Line] = []
    for ours in _of(results, who="ours"):
        if ours["part"] not in ("tiny", "femto", "large") or "precision" not in ours:
            continue  # another part, or one that was not begun and is among the notes
        reference = _reference_of(results, ours)
        # A run that is too short to have a steady part has the rate of the whole training.
        rate, name = ours.get("examples_per_second") or ours.get("whole_run_examples_per_second"), _label(ours)
        best = reference.get("examples_per_second") if reference else None
        goal = LARGE_GOAL if ours["part"] == "large" else SMALL_STUDENT_GOAL
        loop = str(reference["loop"]) if reference else "none"
        has_goal = reference is not None and loop != "eager"
        ratio = rate / best if rate and best else None
        mode = ours.get("mode") or (ours.get("mode_line") or {}).get("mode") or "mode not named"
        found.append(
            Line(
                f"{name}, examples/s",
                f"{_number(best)} ({loop})",
                f"{_number(rate)} ({mode})",
                ratio,
                f"{goal:.2f}" if has_goal else "-",
                ratio >= goal if ratio is not None and has_goal else None,
            )
        )
        if reference is not None and None not in (reference.get("loss"), ours.get("loss")):
            found.append(Line(f"{name}, loss", f"{reference['loss']:.4f}", f"{ours['loss']:.4f}", None, "-", None))
        if ours["part"] == "large" and ours.get("mfu") is not None:
            found.append(_mfu_line(name, reference, ours, has_goal=ours["batch"] == MFU_BATCH))
    return found


def _mfu_line(name: str, reference: Result | None, ours: Result, *, has_goal: bool) -> Line:
    theirs = reference.get("mfu") if reference else None
    return Line(
        f"{name}, MFU",
        "-" if theirs is None else f"{theirs:.3f}",
        f"{ours['mfu']:.3f}",
        ours["mfu"] / theirs if theirs else None,
        f"MFU {MFU_GOAL:.2f}" if has_goal else "-",
        ours["mfu"] >= MFU_GOAL if has_goal else None,
    )


def _logits_lines(results: list[Result]) -> list[Line]:
    lines = []
    for ours in _of(results, who="ours", part="logits"):
        if "rows_per_second" not in ours:
            continue
        reference = next(iter(_of(results, who="reference", part="logits", precision=ours["precision"])), None)
        best = reference["rows_per_second"] if reference else None
        lines.append(
            Line(
                f"{_label(ours)}, rows/s",
                f"{_number(best)} (rows on the GPU)",
                f"{_number(ours['rows_per_second'])} (texts to store)",
                ours["rows_per_second"] / best if best else None,
                "-",
                None,
            )
        )
    return lines


def _causal_lines(results: list[Result]) -> list[Line]:
    lines = []
    for part, goal in CAUSAL_GOALS.items():
        reference, ours = (next(iter(_of(results, who=who, part=part)), None) for who in ("reference", "ours"))
        if reference is None or ours is None or "mfu" not in ours:
            continue
        lines.append(
            Line(
                f"{_label(ours)}, MFU",
                f"{reference['mfu']:.3f} ({reference['loop']})",
                f"{ours['mfu']:.3f} ({ours['mode']})",
                ours["mfu"] / reference["mfu"] if reference["mfu"] else None,
                f"MFU {goal:.2f}",
                ours["mfu"] >= goal,
            )
        )
    return lines


def _overhead_lines(results: list[Result]) -> list[Line]:
    return [
        Line(
            f"{_label(ours)}, overhead of the stage (process without models)",
            "-",
            f"{ours['overhead_s']:.1f} s ({ours['process_overhead_s']:.1f} s)",
            None,
            f"{OVERHEAD_GOAL_S} s",
            ours["process_overhead_s"] <= OVERHEAD_GOAL_S,
        )
        for ours in _of(results, who="ours")
        if "overhead_s" in ours
    ]


def _reference_of(results: list[Result], ours: Result) -> Result | None:
    """The fastest reference of the same work."""
    same = _of(results, who="reference", part=ours["part"], precision=ours["precision"], batch=ours["batch"])
    with_rate = [result for result in same if result.get("examples_per_second")]
    return max(with_rate, key=lambda result: float(result["examples_per_second"]), default=None)


def _of(results: list[Result], **wanted: Any) -> list[Result]:
    return [result for result in results if all(result.get(name) == value for name, value in wanted.items())]


def _label(result: Result) -> str:
    parts = [str(result.get("part")), *(str(result[name]) for name in ("precision",) if result.get(name))]
    if result.get("part") == "large" and result.get("batch"):
        parts.append(f"batch {result['batch']}")
    return " ".join(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
