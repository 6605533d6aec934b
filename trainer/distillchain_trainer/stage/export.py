"""Exports of a committed stage: found in the store, or made from the committed weights and compared with them.

They are no part of the commit. So an export that is added to the spec later is made by the next run, without training,
and one that fails is reported beside the commit.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillchain_api.failures import FailureClass
from distillchain_api.layout import export_record_key, manifest_key
from distillchain_api.metrics import format_value
from distillchain_api.resource.export import Format
from distillchain_api.wire.answer import Committed, ExportFailure, fit
from distillchain_api.wire.export import ExportRecord, MeasuredFormat
from distillchain_api.wire.manifest import Manifest
from distillchain_store.commit import read_manifest
from distillchain_store.errors import CheckpointCorrupt, causes
from distillchain_store.redaction import without_secrets
from distillchain_trainer.errors import ExportInvalid, OutOfMemory, first_line, translate_unforeseen
from distillchain_trainer.export.record import discard_export, find_export, summaries, upload_export
from distillchain_trainer.stage.context import Context, utc_now
from distillchain_trainer.stage_warnings import StageWarnings

if TYPE_CHECKING:
    from distillchain_trainer.data.split import Split
    from distillchain_trainer.engine.encoding.encoded import Encoded
    from distillchain_trainer.export.compare import Measured

log = logging.getLogger(__name__)

FILES: dict[Format, str] = {"onnx": "model.onnx", "onnx-int8": "model.int8.onnx"}
LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
MOST_FLOPS = 1e14
"""Of one pass over validation: minutes on 16 cores. Of a larger validation split, some rows are measured."""
MEMORY_IS_SHORT = re.compile("unable to mmap|Failed to serialize proto|Failed to allocate memory|bad_alloc")
"""Texts of safetensors, protobuf and ONNX Runtime. A graph that is too large for protobuf is written in two files."""
MESSAGE_BYTES = 1000  # beside the metrics of student and teacher in a termination message of 4,096 bytes


def with_exports(context: Context, answer: Committed) -> Committed:
    """The answer of a committed stage with its exports or the reason why they failed.

    Raises: StopRequested.
    """
    if context.order.export.name is None:
        return answer
    try:
        return _ensure_exports(context, answer, context.order.export.name)
    except Exception as error:  # whatever fails here, the student is committed and can teach the next stage
        failure = failure_of(context.order.stage, error)
        log.warning("the export failed; the stage stays committed: %s", failure.message, exc_info=error)
        return answer.model_copy(update={"export_failure": failure})


def failure_of(stage: str, error: Exception) -> ExportFailure:
    """Why the export of a stage failed, in the words of a message."""
    known = translate_unforeseen(error)
    sentence = str(known) if known else f"{type(error).__name__}: {first_line(error)}"
    failure_class = known.failure_class if known else FailureClass.CRASHED
    if isinstance(known, OutOfMemory) or any(MEMORY_IS_SHORT.search(str(cause)) for cause in causes(error)):
        failure_class = FailureClass.OUT_OF_MEMORY
        # The usual remedy is about training.
        sentence = "out of memory: raise resources.limits.memory of this stage, or remove its export.onnx"
    if not sentence.startswith("export.onnx"):
        sentence = f"export.onnx of stage {stage}: {sentence}"
    return ExportFailure(failure_class=failure_class, message=fit(without_secrets(sentence), MESSAGE_BYTES))


def read_committed(context: Context) -> Manifest:
    """The manifest of a stage that is exported and not trained.

    Raises: CheckpointCorrupt when it is missing; errors of the store.
    """
    order = context.order
    manifest = read_manifest(context.store, order.digest)
    if manifest is None:
        raise CheckpointCorrupt(
            f"{context.store.uri}/{manifest_key(order.digest)} is missing: stage {order.stage} is no longer committed, "
            f"and an export never trains; restore the object, remove {order.field}.export, or create the chain again "
            "to train the stage"
        )
    return manifest


def _ensure_exports(context: Context, answer: Committed, name: Format) -> Committed:
    """Raises: ExportInvalid, CheckpointInvalid, DataInvalid; StopRequested; errors of the store."""
    order, store = context.order, context.store
    manifest = read_committed(context)
    record = find_export(store, manifest, name)
    if record is None:
        own = _Exporting(context, manifest).run()
        # Another chain with this stage may have made it meanwhile; its status names those files.
        record = find_export(store, manifest, name)
        if record is not None:
            discard_export(store, own)
        else:
            record = own
            store.write(export_record_key(manifest.digest, name), record.to_json().encode())
        log.info("exported", extra={"export": name, "stage": order.stage})
    shown = summaries(store, record, order.task.deciding_metric)
    return answer.model_copy(update={"exports": shown, "warnings": [*answer.warnings, *record.warnings]})


class _Exporting:
    """One export, by one process on the CPU."""

    def __init__(self, context: Context, manifest: Manifest) -> None:
        # torch takes seconds to import, and an export that is found in the store does not need it.
        from distillchain_trainer.export.graphs import graphs_for
        from distillchain_trainer.models.checkpoints import fetch_committed
        from distillchain_trainer.tasks import adapter_for

        self._context, self._manifest, order = context, manifest, context.order
        self._formats = order.export.formats
        context.reporter.report("Export", 0, 1)
        folder = context.scratch("export")
        # Its warnings are known: the training has read the same rows and has made the checkpoint.
        self._task = adapter_for(order.task, StageWarnings())
        address = order.storage
        data = self._task.read_data(
            endpoint_url=address.endpoint_url, region=address.region, folder=context.scratch("export-data")
        )
        checkpoint = fetch_committed(context.store, manifest, field=order.field, folder=folder / "committed")
        self._loaded = self._task.load_teacher(checkpoint)
        self._loaded.model.float()
        self._facts, self._all_rows = data.validation.facts, len(data.validation)
        self._split, self._encoded = self._measured_rows(data.validation)
        self._graphs = graphs_for(order.task.type, self._loaded, self._encoded, who=self._who)
        self._out = folder / "files"
        self._out.mkdir()
        for path in checkpoint.folder.iterdir():
            # What a tokenizer is loaded from; the weights are in the ONNX file.
            if path.suffix in (".json", ".txt", ".model", ".jinja"):
                shutil.copyfile(path, self._out / path.name)

    def _measured_rows(self, validation: Split) -> tuple[Split, Encoded]:
        encoded = self._encode(validation)
        flops = 2.0 * self._manifest.student.parameters * float(encoded.lengths.sum())
        if flops <= MOST_FLOPS:
            return validation, encoded
        # Under another name, because a task keeps what it knows of a split by name.
        part = validation.sample(math.ceil(len(validation) * MOST_FLOPS / flops), name="a part of validation")
        return part, self._encode(part)

    def _encode(self, split: Split) -> Encoded:
        return self._task.encode(split, self._loaded, check=self._context.signals.raise_if_requested)

    def run(self) -> ExportRecord:
        context, order, manifest = self._context, self._context.order, self._manifest
        reference = self._measure(self._loaded.model, 0)
        formats = [
            MeasuredFormat(
                format="pytorch",
                size_bytes=manifest.student.size_bytes,
                validation=reference.metrics,
                examples_per_second=reference.examples_per_second,
            )
        ]
        warnings = []
        # The check covers the rows that are there now, which may be others under the same URI.
        if self._facts.sha256 != manifest.data["validation"].sha256:
            warnings.append(f"{self._who}: the rows of validation have changed since the stage was committed")
        rows = len(self._split) if len(self._split) < self._all_rows else None
        if rows is not None:
            warnings.append(f"{self._who}: all formats are measured on {rows:,} of {self._all_rows:,} validation rows")
        for done, kind in enumerate(self._formats, 1):
            context.signals.raise_if_requested()
            path = self._write(kind)
            measured, found = self._compare(kind, path, reference, done)
            formats.append(measured)
            warnings += found
        with context.patiently():
            files = upload_export(context.store, order.digest, context.attempt, self._out)
        return ExportRecord(
            digest=order.digest,
            weights=manifest.student.revision,
            attempt=context.attempt,
            files=files,
            formats=formats,
            rows=rows,
            warnings=warnings,
            environment={name: version(name) for name in LIBRARIES} | {"device": _cpu()},
            created_at=utc_now(),
        )

    @property
    def _who(self) -> str:
        return f"export.onnx of stage {self._context.order.stage}"

    def _write(self, kind: Format) -> Path:
        path = self._out / FILES[kind]
        if kind == "onnx-int8":
            self._graphs.quantize(self._out / FILES["onnx"], path)
        else:
            self._graphs.write(path)
            self._loaded.free()  # a quantizer needs several times the memory of the weights
        return path

    def _measure(self, model: Any, before: int) -> Measured:
        """A model in one format; `before`: how many formats were measured before it."""
        from distillchain_trainer.export.compare import measure_format

        def report(done: int, of: int) -> None:
            self._context.reporter.report("Export", before * of + done, (1 + len(self._formats)) * of)

        return measure_format(model, self._loaded, self._task, self._split, self._encoded, on_batch=report)

    def _compare(self, kind: Format, path: Path, reference: Measured, before: int) -> tuple[MeasuredFormat, list[str]]:
        from distillchain_trainer.export.compare import difference, is_worse
        from distillchain_trainer.export.onnx_file import size_of

        task = self._context.order.task
        metric = task.deciding_metric
        measured = self._measure(self._graphs.load(path), before)
        differs = difference(task.type, reference.outputs, measured.outputs)
        ours, theirs = measured.metrics[metric.name], reference.metrics[metric.name]
        both = f"{metric.name} {format_value(ours, metric)} and {format_value(theirs, metric)}"
        what = (
            f"{differs.predictions} of {len(reference.outputs)} predictions on validation differ from PyTorch's "
            f"({both}), and outputs differ by up to {differs.largest:.2g}"
        )
        if kind == "onnx" and not differs.is_within_tolerance:
            raise ExportInvalid(
                f"{self._who}: the exported graph computes something else: {what}. The checkpoint itself is good and "
                "stays committed; remove export.onnx of this stage"
            )
        found = []
        if kind == "onnx" and differs.predictions:
            found.append(f"{self._who}: {what}, which is within rounding: two answers of those rows are almost equal")
        if kind == "onnx-int8" and is_worse(metric, ours, theirs):
            found.append(f"{self._who}: int8 lowers the quality: {what}")
        stored = MeasuredFormat(
            format=kind,
            path=path.name,
            size_bytes=size_of(path),
            validation=measured.metrics,
            examples_per_second=measured.examples_per_second,
            different_predictions=differs.predictions,
            largest_difference=differs.largest,
        )
        return stored, found


def _cpu() -> str:
    import torch

    return f"cpu ({torch.get_num_threads()} threads)"
