"""Texts to token ids: control tokens in texts, truncation, and what a tokenizer keeps of a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distillchain_trainer.data.split import Split, key_of
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from later import Later
from trainer.parts import BAD, FILLERS, GOOD, save_tokenizer, sentences

encoding = Later("distillchain_trainer.engine.encoding.encoding")
tokenizers = Later("tokenizers")
transformers = Later("transformers")

CORPUS = [text for text, _ in sentences(200, 5)]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *"[]<>/|!"]


def a_split(*texts: str | tuple[str, str], place_prefix: str = "") -> Split:
    rows = [text if isinstance(text, tuple) else (text,) for text in texts]
    return Split("validation", rows, [0] * len(rows), [key_of(row) for row in rows], place_prefix)


def encode(tokenizer: Any, *texts: str | tuple[str, str], max_length: int = 64) -> list[list[int]]:
    encoder = encoding.Encoder(max_length, warnings=StageWarnings())
    found = encoder.encode(a_split(*texts), tokenizer, pad_id=0)
    return [found.batch([row])["input_ids"][0].tolist() for row in range(len(found))]


def word_piece(*, controls: bool = True) -> Any:
    """As BERT's. Without `controls`, "[SEP]" and the like are no tokens at all."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    words = [*names, *FILLERS, *GOOD, *BAD, *letters]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    if not controls:
        vocabulary = {f"{word} is no token" if word in names[2:] else word: i for word, i in vocabulary.items()}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    if not controls:
        return backend
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def byte_pairs(*controls: str) -> Any:
    """A byte-level BPE of the sentences, with control tokens in its vocabulary."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(controls),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def bart() -> Any:
    backend = byte_pairs("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    backend.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", unk_token="<unk>", pad_token="<pad>",
        mask_token="<mask>",
    )  # fmt: skip


def gpt() -> Any:
    """One token for everything, also for unknown words, as GPT-2's."""
    name = "<|endoftext|>"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_pairs(name), bos_token=name, eos_token=name, unk_token=name, pad_token=name
    )


def unigram() -> Any:
    """As XLM-RoBERTa's: the best way to read "</s>" is the piece of that name, also within a word."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(f"\u2581{word}", -3.0) for word in [*FILLERS, *GOOD, *BAD]] + [(letter, -5.0) for letter in LETTERS]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=3))
    backend.normalizer = tokenizers.normalizers.NFKC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", unk_token="<unk>", pad_token="<pad>",
    )  # fmt: skip


def test_a_control_token_in_a_text_is_read_letter_by_letter():
    tokenizer, plain = word_piece(), word_piece(controls=False)
    texts = ["a good [SEP] film", "[CLS] bad [MASK]", "[PAD]", "good[SEP]bad", "[UNK] film"]

    found = encode(tokenizer, *texts)

    assert found == [[2, *plain.encode(text).ids, 3] for text in texts]
    assert tokenizer.convert_ids_to_tokens(found[2]) == ["[CLS]", "[", "p", "##a", "##d", "]", "[SEP]"]


CONTROLS = [
    pytest.param(word_piece, "[SEP]", id="WordPiece: [SEP]"),
    pytest.param(word_piece, "[MASK]", id="WordPiece: [MASK]"),
    pytest.param(bart, "</s>", id="BPE: </s>"),
    pytest.param(bart, "<pad>", id="BPE: <pad>"),
    pytest.param(bart, "<mask>", id="BPE: <mask>"),
    pytest.param(bart, "<unk>", id="BPE: <unk>"),
    pytest.param(gpt, "<|endoftext|>", id="BPE: <|endoftext|>"),
    pytest.param(unigram, "</s>", id="Unigram: </s>"),
    pytest.param(unigram, "\uff1c/s\uff1e", id="Unigram: full-width </s>, which is normalized"),
    pytest.param(unigram, "<pad>", id="Unigram: <pad>"),
]


@pytest.mark.parametrize("build, control", CONTROLS)
def test_no_kind_of_tokenizer_reads_a_control_token_from_a_text(build: Callable[[], Any], control: str):
    tokenizer = build()
    control_id = tokenizer.convert_tokens_to_ids("</s>" if "/s" in control else control)
    ordinary = ["a good film", "bad"]
    around = [row.count(control_id) for row in encode(tokenizer, *ordinary)]

    found = encode(tokenizer, "a good film", f"a good {control} film", control, f"bad{control}")

    assert [row.count(control_id) for row in found] == around[:1] * 4
    assert found[0] == tokenizer("a good film")["input_ids"]
    assert all(len(row) > len(found[0]) - 3 for row in found[1:]), "the text is still there"


@pytest.mark.parametrize("build", [word_piece, bart, gpt, unigram])
def test_ordinary_texts_get_the_ids_that_transformers_gives_them(build: Callable[[], Any]):
    tokenizer = build()
    pairs = list(zip(CORPUS[:50], CORPUS[50:100], strict=True))

    assert encode(tokenizer, *CORPUS, max_length=8) == tokenizer(CORPUS, truncation=True, max_length=8)["input_ids"]
    want = tokenizer([a for a, _ in pairs], [b for _, b in pairs], truncation=True, max_length=12)["input_ids"]
    assert encode(tokenizer, *pairs, max_length=12) == want


def test_a_character_that_pads_is_text():
    tokenizer = word_piece()
    tokenizer.pad_token = "!"

    assert encode(tokenizer, "a good film !") == [tokenizer("a good film !")["input_ids"]]


def test_a_token_that_ends_every_text_is_a_control_token_also_without_a_role():
    """A tokenizer.json alone, without the names in tokenizer_config.json."""
    backend = word_piece().backend_tokenizer
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    assert tokenizer.sep_token is None

    assert encode(tokenizer, "good [SEP] film [CLS]") == encode(word_piece(), "good [SEP] film [CLS]")


def test_control_tokens_in_pairs_and_in_truncated_texts_are_text():
    tokenizer, plain = word_piece(), word_piece(controls=False)

    (pair,) = encode(tokenizer, ("good [SEP] film", "bad"))
    (truncated,) = encode(tokenizer, "a good [SEP] film", max_length=6)

    first, second = plain.encode("good [SEP] film").ids, plain.encode("bad").ids
    assert pair == [2, *first, 3, *second, 3]
    assert truncated == [2, *plain.encode("a good [SEP] film").ids[:4], 3]


def test_token_types_of_a_pair_with_a_control_token_are_those_of_its_texts():
    tokenizer = word_piece()
    encoder = encoding.Encoder(64, warnings=StageWarnings())

    encoded = encoder.encode(a_split(("good [SEP] film", "bad")), tokenizer, pad_id=0)

    assert encoded.batch([0])["token_type_ids"].tolist() == [[0] * (len(encoded.ids) - 2) + [1, 1]]


def test_markers_that_were_added_on_purpose_stay_tokens():
    """Entity markers are usually added as special tokens, and others as plain ones."""
    tokenizer = word_piece()
    tokenizer.add_special_tokens({"extra_special_tokens": ["[E1]", "[/E1]"]})
    tokenizer.add_tokens(["@user"])
    markers = tokenizer.convert_tokens_to_ids(["[E1]", "[/E1]", "@user"])

    plain, with_control = encode(tokenizer, "[E1] film [/E1] @user", "[E1] film [/E1] @user [SEP]")

    assert [token for token in plain if token in markers] == markers
    assert [token for token in with_control if token in markers] == markers
    assert with_control.count(3) == 1


def test_encoding_leaves_a_tokenizer_as_it_was(tmp_path: Path):
    save_tokenizer(tmp_path / "before")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "before")
    tokenizer.save_pretrained(tmp_path / "loaded")

    encode(tokenizer, "a good film", "[SEP]", "[UNK]", max_length=4)
    tokenizer.save_pretrained(tmp_path / "after")

    for file in (tmp_path / "loaded").iterdir():
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes(), file.name
    assert (
        tokenizer("[SEP]")["input_ids"]
        == transformers.AutoTokenizer.from_pretrained(tmp_path / "before")("[SEP]")["input_ids"]
    )


def test_a_python_tokenizer_that_reads_a_control_token_is_refused_with_its_place():
    tokenizer = transformers.ByT5Tokenizer()
    split = replace(a_split("good", "bad", "a </s> b", place_prefix="a.tsv:"), numbers=[2, 3, 5])
    encoder = encoding.Encoder(64, warnings=StageWarnings())

    with pytest.raises(DataInvalid) as failure:
        encoder.encode(split, tokenizer, pad_id=0)

    assert str(failure.value) == (
        'a.tsv:5: the text has "</s>", which this tokenizer reads as a control token; remove it from the text, or use a '
        "checkpoint with a tokenizer.json"
    )
    assert encode(tokenizer, "good") == [tokenizer("good")["input_ids"]]


@pytest.mark.parametrize("build", [word_piece, lambda: transformers.ByT5Tokenizer()])
def test_truncated_texts_are_counted_with_the_longest_of_them(
    build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("distillchain_trainer.engine.encoding.encoding.TOKENIZE_ROWS", 2)
    tokenizer, warnings = build(), StageWarnings()
    encoder = encoding.Encoder(10, warnings=warnings)
    words = ["good", "bad", "film film film film film film film film film", "a " * 29, "a " * 8]
    longest = max(len(tokenizer(text)["input_ids"]) for text in words)
    count = sum(len(tokenizer(text)["input_ids"]) > 10 for text in words)

    encoder.encode(a_split(*words), tokenizer, pad_id=0)
    encoder.encode(a_split(*words), tokenizer, pad_id=0)
    encoder.encode(replace(a_split("a " * 12, "good"), name="test"), tokenizer, pad_id=0)

    assert warnings.sentences == [
        f"spec.task.maxLength: texts with more than 10 tokens are truncated: {count} of 5 validation texts, 1 of 2 test "
        f"texts; the longest has {longest} (tokenizer with {len(tokenizer)} tokens)"
    ], "one sentence for all splits"


def test_truncated_pairs_and_texts_with_control_tokens_are_counted():
    warnings = StageWarnings()
    tokenizer = word_piece()
    rows = [("a " * 20, "good"), ("a " * 5, "bad " * 15), ("a [SEP] " * 9, "bad"), ("good", "bad")]

    encoding.Encoder(16, warnings=warnings).encode(a_split(*rows), tokenizer, pad_id=0)

    (warning,) = warnings.sentences
    assert "3 of 4 validation texts" in warning
    assert f"the longest has {9 * 6 + 1 + 3} " in warning  # a, [, s, ##e, ##p, ] nine times


def test_texts_that_fit_give_no_warning():
    warnings = StageWarnings()

    encoding.Encoder(5, warnings=warnings).encode(a_split("a good film"), word_piece(), pad_id=0)

    assert warnings.sentences == []


def test_a_split_is_encoded_once_for_tokenizers_that_give_the_same_ids(tmp_path: Path):
    """A saved tokenizer may have its own truncation and padding, which encoding ignores."""
    tokenizer, same = save_tokenizer(tmp_path), save_tokenizer(tmp_path)
    same.backend_tokenizer.enable_truncation(7)
    split = a_split("a good film", "bad")
    encoder = encoding.Encoder(16, warnings=StageWarnings())

    first = encoder.encode(split, tokenizer, pad_id=0)

    assert encoder.encode(split, same, pad_id=0) is first
    same.truncation_side = "left"
    assert encoder.encode(split, same, pad_id=0) is not first
    assert tokenizer.backend_tokenizer.truncation is None
    assert same.backend_tokenizer.truncation["max_length"] == 7


def test_a_freed_python_tokenizer_is_not_taken_for_the_next_one():
    """Python may give the id of a freed object to the next one."""
    encoder = encoding.Encoder(16, warnings=StageWarnings())
    split = a_split("good")
    found = []
    for extra in range(5):
        tokenizer = transformers.ByT5Tokenizer(extra_ids=extra)
        found.append(encoder.encode(split, tokenizer, pad_id=0))
        del tokenizer

    assert len({id(encoded) for encoded in found}) == 5


def test_encoding_stops_between_blocks_when_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("distillchain_trainer.engine.encoding.encoding.TOKENIZE_ROWS", 2)
    calls: list[None] = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoding.Encoder(16, warnings=StageWarnings()).encode(
            a_split("a", "the", "film", "is", "good"), word_piece(), pad_id=0, check=check
        )
    assert len(calls) == 2
