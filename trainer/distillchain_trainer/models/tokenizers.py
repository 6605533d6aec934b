"""The tokenizer of a checkpoint, and whether it fits a model: vocabulary, padding token and length."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distillchain_trainer.errors import CheckpointInvalid, first_line, translate_unforeseen
from distillchain_trainer.models.checkpoint_files import read_json
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.stage_warnings import StageWarnings

MAX_SANE_LENGTH = 1 << 20  # tokenizers without a limit have a model_max_length of 10**30
# Embeddings are often padded to a multiple of 64 to 512; a much smaller vocabulary is probably another model's.
MIN_USED_SHARE = 0.9
# Has what tokenizers treat differently: case, digits, punctuation, accents, Chinese characters and white space.
PROBE = "Film no. 1234: it's a café-naïve 日本,\n\n  don't_stop at https://example.org/a"


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer of a checkpoint; it has a padding token. Raises: CheckpointInvalid."""
    what = f"{checkpoint.field}: the tokenizer of {checkpoint.uri}"
    _check_files(checkpoint.folder, what)
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise errors of many classes for bad files
        raise translate_unforeseen(error) or CheckpointInvalid(
            f"{what} cannot be loaded: {first_line(error)}; save it with save_pretrained, which writes tokenizer.json"
        ) from error
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if not words:
        # transformers builds an empty tokenizer where the files are not those that the model type expects.
        raise CheckpointInvalid(
            f"{what} has no words except its special tokens; its files are not those of a {type(tokenizer).__name__}: "
            "add the tokenizer.json it was trained with"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointInvalid(f"{what} has no padding token and no end token; set pad_token and save it again")
        # Decoders such as GPT-2 come without a padding token.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def warn_of_other_tokens(checkpoint: Checkpoint, tokenizer: Any, *, what: str, warnings: StageWarnings) -> None:
    """Warns if transformers gives other tokens than the checkpoint's tokenizer.json.

    For many model types it replaces normalizer and pre-tokenizer by its own (transformers issue 45488).
    """
    path, backend = checkpoint.folder / "tokenizer.json", getattr(tokenizer, "backend_tokenizer", None)
    # PreTrainedTokenizerFast takes the file as it is.
    if type(tokenizer) is PreTrainedTokenizerFast or backend is None or not path.exists():
        return
    ours, stated = (it.encode(PROBE).ids for it in (backend, Tokenizer.from_file(str(path))))
    if ours != stated:
        warnings.add(
            f"{what} is read as a {type(tokenizer).__name__}, which gives other tokens than its tokenizer.json; if the "
            "model was trained with those of tokenizer.json, write PreTrainedTokenizerFast as tokenizer_class into "
            "tokenizer_config.json (it has no effect on a qwen2)"
        )


def vocabulary_size(tokenizer: Any) -> int:
    """Rows that the embeddings of a model must have: ids may have gaps, so this may exceed the number of tokens."""
    ids: list[int] = list(tokenizer.get_vocab().values())
    return max(len(tokenizer), max(ids) + 1)


def agree_on_padding(tokenizer: Any, config: Any, *, what: str, warnings: StageWarnings) -> None:
    """Gives config and tokenizer the same padding token; call it before the model is built from `config`.

    The one in `config` takes precedence: a model may count positions from it (RoBERTa), or find the last token of a
    text by it (decoders).
    """
    own = config.get_text_config()
    vocabulary = getattr(own, "vocab_size", None) or len(tokenizer)
    pad_id = getattr(own, "pad_token_id", None)  # some configs do not have the field
    if pad_id is None or not 0 <= pad_id < vocabulary:
        own.pad_token_id = tokenizer.pad_token_id
    elif pad_id != tokenizer.pad_token_id:
        token = tokenizer.convert_ids_to_tokens(pad_id)
        if token in tokenizer.all_special_tokens:  # an ordinary word would become special and be cut out of texts
            tokenizer.pad_token = token
        else:
            warnings.add(
                f"{what}: config.json pads with id {pad_id} ({token}), the tokenizer with id {tokenizer.pad_token_id} "
                f"({tokenizer.pad_token}); batches are padded with {pad_id}"
            )


def set_padding_side(tokenizer: Any, side: str) -> None:
    """Also in what save_pretrained writes: who pads a batch for the saved model must do it as it was measured."""
    tokenizer.padding_side = side
    tokenizer.init_kwargs["padding_side"] = side


def check_fit(model: Any, tokenizer: Any, *, field: str, name: str, max_length: int) -> None:
    """Checks that a model has embeddings and positions for what a tokenizer gives it. Raises: CheckpointInvalid.

    Args:
        field: begins messages about the vocabulary.
        name: what messages call the model.
    """
    size, rows = vocabulary_size(tokenizer), _embedding_rows(model)
    # A token without an embedding would fail as an index error in the middle of a pass.
    if rows is not None and size > rows:
        raise CheckpointInvalid(
            f"{field}: the tokenizer has {size} words, the model {name} has embeddings for {rows}; "
            "use the tokenizer it was trained with"
        )
    longest = _longest(model, tokenizer)
    if max_length > longest:
        raise CheckpointInvalid(
            f"spec.task.maxLength: got {max_length}, but {name} reads at most {longest} tokens; lower it"
        )


def warn_of_other_vocabulary(model: Any, tokenizer: Any, *, what: str, warnings: StageWarnings) -> None:
    """Warns if a pretrained model has many more embeddings than the tokenizer has words."""
    size, rows = vocabulary_size(tokenizer), _embedding_rows(model)
    if rows is not None and size < MIN_USED_SHARE * rows:
        warnings.add(
            f"{what}: the tokenizer has {size} words, the model has embeddings for {rows}; check that it is the "
            "tokenizer the model was trained with"
        )


def _embedding_rows(model: Any) -> int | None:
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:  # models of characters or bytes have none
        return None
    return embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else None


def _longest(model: Any, tokenizer: Any) -> int:
    """Tokens that the model has positions for."""
    limits = [MAX_SANE_LENGTH]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions)
    # A tokenizer's limit may be the maxLength of an earlier training, so it does not bind a model with more positions.
    elif tokenizer.model_max_length and tokenizer.model_max_length < MAX_SANE_LENGTH:
        limits.append(int(tokenizer.model_max_length))
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)  # RoBERTa counts from padding_idx + 1
    return min(limits)


def check_loads_again(loaded: Loaded, tokens_of: Callable[[Any], object], *, who: str, remedy: str) -> None:
    """Checks that a tokenizer of another checkpoint is the same when it is loaded beside this model.

    transformers chooses the class of a tokenizer by the model type too: beside a qwen2, any tokenizer is loaded as
    Qwen2Tokenizer, and the next stage would read other tokens than those the student has learned.

    Args:
        tokens_of: what a tokenizer makes of some texts.
        who, remedy: begin and end the message.
    Raises: CheckpointInvalid.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The configuration is saved too, because the class of the tokenizer depends on its model type.
        loaded.model.config.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        try:
            again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            differs, name = tokens_of(again) != tokens_of(loaded.tokenizer), type(again).__name__
        except Exception as error:  # any class of transformers may be chosen, and fail on the files of another
            known = translate_unforeseen(error)
            if known is not None:
                raise known from error
            # It cannot be loaded at all, so its class is not known.
            differs, name = True, "another class"
    if differs:
        raise CheckpointInvalid(
            f"{who}: saved with a {loaded.model.config.model_type}, this tokenizer would be loaded as {name} and give "
            f"other tokens; {remedy}"
        )


def _check_files(folder: Path, what: str) -> None:
    settings = folder / "tokenizer_config.json"
    if settings.exists() and "auto_map" in read_json(settings, f"{what}: tokenizer_config.json"):
        raise CheckpointInvalid(
            f"{what} needs code of its own (auto_map in tokenizer_config.json), which is never run; save it as a fast "
            "tokenizer of transformers with save_pretrained and remove auto_map"
        )
    _check_same_vocabulary(folder, what)


def _check_same_vocabulary(folder: Path, what: str) -> None:
    """tokenizer.json is read and the others are not, so a vocabulary that was replaced would have no effect."""
    if not (folder / "tokenizer.json").exists():
        return
    listed = {name: _words(folder / name, what) for name in ("vocab.txt", "vocab.json") if (folder / name).exists()}
    if not listed:
        return
    model = read_json(folder / "tokenizer.json", f"{what}: tokenizer.json").get("model")
    used = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(used, dict):  # Unigram: its vocabulary is in neither of the others
        return
    for name, words in listed.items():
        other = next((word for word, index in words.items() if used.get(word, index) != index), None)
        if other is not None:
            raise CheckpointInvalid(
                f"{what}: tokenizer.json and {name} disagree: {json.dumps(other)} has id {used[other]} in one and "
                f"{words[other]} in the other; delete the file that does not belong to the model"
            )


def _words(path: Path, what: str) -> dict[str, int]:
    if path.suffix == ".json":
        return read_json(path, f"{what}: {path.name}")
    try:
        # Not splitlines(), which also breaks at U+2028, U+0085 and form feeds: those may be part of a word.
        lines = [line.removesuffix("\r") for line in path.read_text("utf-8").removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise CheckpointInvalid(f"{what}: {path.name} is not UTF-8 ({error})") from error
    return {word: index for index, word in enumerate(lines)}
