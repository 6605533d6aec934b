"""The front matter of a model card, as the Hugging Face hub defines it (docs/hub/model-cards of the hub)."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from distillchain_trainer.model_card.facts import CardFacts

PIPELINES = {
    "TextClassification": "text-classification",
    "MultiLabelClassification": "text-classification",
    "Regression": "text-classification",
    "TokenClassification": "token-classification",
    "CausalLM": "text-generation",
}
"""The pipeline of transformers that serves each task type."""
METRIC_TYPES = {"macroF1": "f1", "microF1": "f1", "entityF1": "f1", "pearson": "pearsonr", "spearman": "spearmanr"}
"""The hub's identifiers of metrics; the others have the same name there."""


def build_metadata(facts: CardFacts) -> ModelCardData:
    """The metadata of the card. What the hub does not have, such as a base model in a bucket, is left out."""
    manifest = facts.manifest
    task = manifest.recipe["task"]
    uri = task["dataset"]["uri"]
    start = manifest.recipe["student"].get("model", "")
    others: dict[str, Any] = {}
    # Without weights of the start, its license says nothing about the student.
    if manifest.pretrained and "start" in manifest.licenses:
        others["license"] = manifest.licenses["start"]
    return ModelCardData(
        model_name=f"{manifest.chain.rpartition('/')[2]}-{manifest.stage}",
        library_name="transformers",
        pipeline_tag=PIPELINES.get(task["type"]),
        base_model=_hub_name(start),
        datasets=[name] if (name := _hub_name(uri)) else None,
        metrics=sorted({METRIC_TYPES.get(metric, metric) for metric in manifest.student.metrics.validation}),
        tags=["distillchain", "knowledge-distillation"],
        eval_results=_results(facts, task, _hub_name(uri) or uri.rstrip("/").rpartition("/")[2]),
        **others,
    )


def _results(facts: CardFacts, task: dict[str, Any], dataset: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=PIPELINES.get(task["type"], task["type"]),
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_config=task["dataset"].get("config"),
            dataset_split=split,
            metric_type=METRIC_TYPES.get(metric, metric),
            metric_name=metric,
            metric_value=estimate.value,
        )
        for split, estimates in facts.estimates.items()
        for metric, estimate in estimates.items()
    ]


def _hub_name(uri: str) -> str | None:
    """`org/name` of hf://org/name@revision; None for what is not on the hub."""
    return uri.removeprefix("hf://").partition("@")[0] if uri.startswith("hf://") else None
