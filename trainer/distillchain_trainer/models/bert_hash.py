"""BERT with word embeddings of a few numbers: Embedding(V, P) -> Linear(P, H), the rest as in BERT.

Registered with the Auto classes as `bert_hash`, so checkpoints of this kind need no remote code. The defaults are
"femto": 242,560 parameters in the encoder with pooler, 242,662 with a head of two classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput, TokenClassifierOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.bert.modeling_bert import BertEncoder, BertPooler


class BertHashConfig(BertConfig):  # type: ignore[no-untyped-call]  # transformers is half typed
    """BertConfig and `projections`: numbers per word before they are projected to `hidden_size`."""

    model_type = "bert_hash"

    vocab_size: int = 30522
    hidden_size: int = 50
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 200
    projections: int = 5


class WordProjection(nn.Linear):
    """P numbers of a word to H. A class of its own, because it is initialised in another way than other layers."""


class BertHashEmbeddings(nn.Module):
    """x = projection(words) + positions + token types, then LayerNorm and dropout."""

    def __init__(self, config: BertHashConfig) -> None:
        super().__init__()
        # padding_idx: the vector of the padding token is not trained.
        self.word_embeddings: nn.Module = nn.Embedding(
            config.vocab_size, config.projections, padding_idx=config.pad_token_id
        )
        self.word_projection = WordProjection(config.projections, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Token ids [B, T] -> embeddings [B, T, H]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        kinds = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        words = self.word_projection(self.word_embeddings(input_ids))
        embedded = words + self.position_embeddings(positions) + self.token_type_embeddings(kinds)
        return self.dropout(self.LayerNorm(embedded))  # type: ignore[no-any-return]  # modules return Any


class BertHashPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # transformers is half typed
    """Weight initialisation and loading, as transformers does them for BERT."""

    config_class = BertHashConfig
    base_model_prefix = "bert"
    # Read by transformers: what the layers support, and which modules must stay whole on one device.
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["BertHashEmbeddings", "BertLayer"]

    def _init_weights(self, module: nn.Module) -> None:
        """Called by transformers for each layer; weights of a checkpoint are not changed."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, WordProjection):
            # A sum of P products keeps the size of its word vectors with this value. With BERT's 0.02, words would
            # start at 4 % of the positions' size, and a short training would see little but positions.
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)


class BertHashModel(BertHashPreTrainedModel):  # type: ignore[no-untyped-call]  # transformers is half typed
    """The encoder with its pooler, tanh(dense(first token)); without one for heads that do not need it, as in BERT."""

    def __init__(self, config: BertHashConfig, *, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BertHashEmbeddings(config)
        self.encoder = BertEncoder(config)  # type: ignore[no-untyped-call]
        self.pooler = BertPooler(config) if add_pooling_layer else None  # type: ignore[no-untyped-call]
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings, P numbers a word."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """Token ids [B, T] -> last hidden states [B, T, H] and pooled first tokens [B, H] (None without a pooler)."""
        embedded = self.embeddings(input_ids, token_type_ids)
        # transformers makes the mask in the form that the chosen implementation of attention expects.
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=embedded, attention_mask=attention_mask)
        states = self.encoder(embedded, attention_mask=mask).last_hidden_state
        pooled = None if self.pooler is None else self.pooler(states)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


class BertHashForSequenceClassification(BertHashPreTrainedModel):  # type: ignore[no-untyped-call]  # transformers is half typed
    """One linear layer on the pooled first token."""

    def __init__(self, config: BertHashConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertHashModel(config)
        self.dropout = nn.Dropout(_head_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, int(config.num_labels or 2))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Token ids [B, T] -> logits [B, C]; with labels also their cross-entropy."""
        pooled = self.bert(input_ids, attention_mask, token_type_ids).pooler_output
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class BertHashForTokenClassification(BertHashPreTrainedModel):  # type: ignore[no-untyped-call]  # transformers is half typed
    """One linear layer on the state of each token."""

    def __init__(self, config: BertHashConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertHashModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(_head_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, int(config.num_labels or 2))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> TokenClassifierOutput:
        """Token ids [B, T] -> logits [B, T, C]; with labels [B, T] also their cross-entropy, without labels of -100."""
        states = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        logits = self.classifier(self.dropout(states))
        # cross_entropy expects the classes in the second dimension.
        loss = None if labels is None else nn.functional.cross_entropy(logits.transpose(1, 2), labels)
        return TokenClassifierOutput(loss=loss, logits=logits)


def _head_dropout(config: BertHashConfig) -> float:
    """None means the dropout of the encoder, as in BERT."""
    own = config.classifier_dropout
    return config.hidden_dropout_prob if own is None else own


def register() -> None:
    """Makes the Auto classes know `bert_hash`; may be repeated."""
    # register() raises for a name that is registered already.
    if BertHashConfig.model_type in CONFIG_MAPPING:
        return
    AutoConfig.register(BertHashConfig.model_type, BertHashConfig)
    AutoModel.register(BertHashConfig, BertHashModel)
    AutoModelForSequenceClassification.register(BertHashConfig, BertHashForSequenceClassification)
    AutoModelForTokenClassification.register(BertHashConfig, BertHashForTokenClassification)
