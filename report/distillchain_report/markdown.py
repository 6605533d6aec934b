"""The report in Markdown, without the figures: for a merge request or a wiki."""

from __future__ import annotations

from distillchain_report import evidence_section, phrases, words
from distillchain_report.markdown_text import plain, table
from distillchain_report.model import ModelReport, Report, StageReport
from distillchain_report.sections import section_of
from distillchain_report.verdict import badge


def render_markdown(report: Report) -> str:
    """The whole report."""
    warnings = report.warnings
    count = f" {words.plural(len(warnings), 'warning')}, see below." if warnings else ""
    section = section_of(report.task or {})
    parts = [
        f"# Distillation report: {plain(report.chain)}",
        f"**{badge(report)}. {plain(report.verdict)}**{count}",
        *(_list("## Warnings", [f"{phrases.stage_names(report, names)}: {text}" for names, text in warnings])),
        *_evidence(report),
        "## Steps",
        _steps(report),
        plain(
            " ".join(
                filter(
                    None,
                    (phrases.chance_words(report), phrases.selection_words(report), phrases.latency_note(report)),
                )
            )
        ),
        *_comparison(report),
        *(section.markdown(report) if report.details else []),
        "## Time",
        _time(report),
        plain(phrases.totals_words(report)),
        *_exports(report),
        "## Lineage",
        _lineage(report),
        *_list(
            "## Environment",
            [
                f"{names}: {'; '.join(f'{key} {value}' for key, value in items)}"
                for names, items in phrases.environments(report)
            ],
        ),
        *_list("## Missing", report.missing),
        plain(section.methods),
        plain(f"Made {report.generated_at} by distillchain {report.distillchain} from {report.storage}."),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _list(heading: str, items: list[str]) -> list[str]:
    return [heading, "\n".join(f"- {plain(item)}" for item in items)] if items else []


def _evidence(report: Report) -> list[str]:
    if report.evidence is None:
        return []
    parts = [f"## {evidence_section.title(report.evidence)}"]
    for stage in report.evidence.stages:
        rows = [evidence_section.arm_cells(report, arm) for arm in evidence_section.arms_of(report, stage)]
        parts += [
            f"**{evidence_section.OUTCOME_WORDS[stage.outcome]}** ({plain(stage.stage)}). {plain(stage.sentence)}",
            table(evidence_section.head(report), rows),
        ]
    return [*parts, *(plain(f"Left out: {sentence}") for sentence in report.evidence.missing), evidence_section.METHOD]


def _steps(report: Report) -> str:
    metric = report.metric
    head = ["model", "note", "parameters", "size", metric.display_name, "95 % interval", "test"]
    if metric.has_retention:
        head += [f"{metric.display_name} kept", "95 % interval"]
    head += ["smaller", "examples/s"]
    has_latency = any(model.latency_p50_ms is not None for model in report.models)
    if has_latency:
        head += ["latency p50", "p95"]
    # By identity: a model holds dictionaries, so it cannot be a key itself.
    stages = {id(stage.model): stage for stage in report.stages if stage.model}
    rows = [_step(report, model, stages.get(id(model)), has_latency=has_latency) for model in report.models]
    waiting = [stage for stage in report.stages if stage.model is None]
    return table(head, rows + [[stage.name, stage.phase, *[""] * (len(head) - 2)] for stage in waiting])


def _step(report: Report, model: ModelReport, stage: StageReport | None, *, has_latency: bool) -> list[str]:
    metric = report.metric
    notes = [
        "new weights" if model.pretrained is False else "",
        "may not have learned the task" if stage and stage.doubt else "",
        phrases.failure_words(stage),
    ]
    row = [
        model.name, "; ".join(filter(None, notes)), words.count(model.parameters), words.size(model.size_bytes),
        words.measured(model.metric.value, metric), words.measured_range(model.metric, metric),
        words.measured(model.test.value if model.test else None, metric),
    ]  # fmt: skip
    if metric.has_retention:
        kept = model.retention
        row += [words.percent(kept.value if kept else None), words.percent_range(kept)]
    row += [words.factor(model.compression), words.rate(model.examples_per_second)]
    if has_latency:
        row += [words.milliseconds(model.latency_p50_ms), words.milliseconds(model.latency_p95_ms)]
    return row


def _comparison(report: Report) -> list[str]:
    pairs = [(f"root teacher → {report.last.name}" if report.last else "", report.against_root)]
    pairs += [(f"{stage.teacher_name} → {stage.name}", stage.against_teacher) for stage in report.stages]
    found = [(name, pair) for name, pair in pairs if pair]
    if not found:
        return []
    head = ["pair", f"difference in {report.metric.display_name}", "permutation test p", "only teacher right",
            "only student right", "both right", "both wrong"]  # fmt: skip
    rows = []
    for name, pair in found:
        counts = pair.counts
        numbers = (
            [counts.only_teacher_right, counts.only_student_right, counts.both_right, counts.both_wrong]
            if counts
            else [words.NOTHING] * 4
        )
        rows.append(
            [
                name,
                words.measured_change(pair.difference, report.metric),
                words.p_value(pair.p_value),
                *map(str, numbers),
            ]
        )
    return ["## Paired comparison on validation", table(head, rows)]


def _time(report: Report) -> str:
    rows: list[list[str]] = []
    for stage in report.stages:
        run = stage.run
        if run is None:
            continue
        if asked := run.teacher_pass:
            time = [words.duration(asked.elapsed_s), words.NOTHING, words.hours(asked.gpu_hours)]
            rows.append([f"{stage.name}: teacher pass", *time, *[words.NOTHING] * 2, ""])
        time = [words.duration(run.elapsed_s), words.duration(run.model_s), words.hours(run.gpu_hours)]
        rows.append([stage.name, *time, str(run.steps), words.rate(run.examples_per_second), phrases.run_note(stage)])
    return table(["stage", "wall", "in models", "GPU-hours", "steps", "trained examples/s", "note"], rows)


def _exports(report: Report) -> list[str]:
    rows = [
        [
            stage.name,
            export.format,
            words.size(export.size_bytes),
            words.measured(export.metric, report.metric),
            words.rate(export.examples_per_second),
            str(export.different_predictions),
            f"{export.largest_difference:.2g}",
            export.uri,
        ]
        for stage in report.stages
        for export in stage.exports
    ]
    if not rows:
        return []
    head = ["stage", "format", "size", report.metric.display_name, "examples/s on a CPU", "other predictions",
            "largest difference", "stored at"]  # fmt: skip
    return ["## Exports", table(head, rows), plain(phrases.measured_exports(report))]


def _lineage(report: Report) -> str:
    return table(
        ["stage", "digest", "taught by", "start", "weights", "recipe", "trained by", "committed"],
        [
            [stage.name, words.short(stage.digest), phrases.teachers_words(report, stage),
             words.short_revisions(run.start), words.short(run.weights), ", ".join(phrases.recipe_parts(stage)),
             run.chain, run.committed_at]
            for stage in report.stages if (run := stage.run)
        ],
    )  # fmt: skip
