"""What the small causal model is made of: sizes, schedule, tokenizer and data, as functions of a seed.

A batch is a function of (recipe, stream, step): a run that stops goes on with the batch it would have had.

Dimensions: B sequences, T tokens of one, N tokens of the stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingest.contract import Array
from ingest.errors import ModelError
from ingest.plan import split_of
from store.schema import subseed

BOS, PAD = "<|bos|>", "<|pad|>"
BOS_ID = 0
USUAL = 2  # ids from here on stand for text


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All that decides the weights, hardware and threads aside; the defaults are those of the shipped model."""

    vocab: int = 4096
    """Tokens at most: two special, 256 bytes, the rest merges."""
    layers: int = 6
    width: int = 256
    heads: int = 8
    kv_heads: int = 2
    inner: int = 704
    """Features of the gated MLP."""
    positions: int = 4096
    """Longest sequence the config admits; nothing beyond ``length`` is trained."""
    length: int = 512
    """Tokens of a training sequence."""
    batch: int = 8
    """Sequences of a step."""
    repeats: float = 0.2
    """Share of sequences that are one segment, repeated; half of these are random tokens, half text."""
    low: int = 24
    """Fewest tokens of a repeated segment."""
    high: int = 256
    """Most tokens of a repeated segment."""
    steps: int = 3851
    peak: float = 1.5e-3
    """Highest learning rate."""
    warmup: int = 200
    """Steps of linear rise to the peak."""
    hold: float = 0.7
    """Share of the steps after which the rate falls linearly."""
    last: float = 0.05
    """Share of the peak at the last step."""
    decay: float = 0.05
    """Weight decay, on matrices."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    seed: int = 1
    """Root of all draws: weights, order of documents, batches."""

    def __post_init__(self) -> None:
        counts = (self.layers, self.width, self.inner, self.batch, self.low, self.steps)
        fits = self.low <= self.high < self.length <= self.positions
        if min(counts) < 1 or not fits or not 0.0 <= self.repeats <= 1.0:
            raise ModelError(
                f"a recipe of {self.layers} layers, width {self.width}, {self.steps} steps of {self.batch} "
                f"sequences of {self.length} tokens (of {self.positions} positions), {self.repeats:g} of them "
                f"repeats of {self.low} to {self.high} tokens cannot be trained. Nothing was started. Give "
                "positive counts, low ≤ high < length ≤ positions, and a share from 0 to 1.",
                kind="bad-recipe",
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: up, constant, then down to ``last``."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        start = int(self.hold * self.steps)
        if step < start:
            return self.peak
        share = (step - start) / max(1, self.steps - 1 - start)
        return self.peak * (1.0 - (1.0 - self.last) * min(1.0, share))

    def config(self, vocab: int) -> Any:
        """Return the Hugging Face config of the model."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=vocab,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.inner,
            max_position_embeddings=self.positions,
            trained_length=self.length,
            tie_word_embeddings=True,
            bos_token_id=BOS_ID,
            eos_token_id=BOS_ID,
            pad_token_id=BOS_ID + 1,
        )


def standard_library(seed: int) -> tuple[list[str], list[str]]:
    """Return texts to train on and texts held out: the source ``stdlib``, split as ingest splits it."""
    from ingest.sources import SOURCES

    texts: tuple[list[str], list[str]] = ([], [])
    for document in SOURCES.get("stdlib")(order_seed=seed).documents():
        digest = hashlib.sha256(document.text.encode()).hexdigest()
        texts[split_of(digest) != 0].append(document.text)
    return texts


def train_tokenizer(texts: Sequence[str], vocab: int) -> Any:
    """Return a byte-level BPE tokenizer trained on the texts, as a Hugging Face tokenizer.

    It adds no special token by itself: sequences are cut at any place, and a text's begin is one of its tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=BOS, pad_token=PAD
    )


def stream(texts: Iterable[str], tokenizer: Any) -> Array:
    """Return the texts as one run of tokens, ``int32[N]``, each text behind its ``<|bos|>``."""
    pieces = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        pieces.append(np.array([BOS_ID, *ids], np.int32))
    return np.concatenate(pieces)


def batch(recipe: Recipe, stream_N: Array, vocab: int, step: int) -> Array:
    """Return the sequences of a step, ``int64[B, T]``."""
    rows = [
        _sequence(recipe, stream_N, vocab, step * recipe.batch + i) for i in range(recipe.batch)
    ]
    return np.stack(rows).astype(np.int64)


def _sequence(recipe: Recipe, stream_N: Array, vocab: int, number: int) -> Array:
    rng = np.random.Generator(np.random.Philox(key=subseed(recipe.seed, "sequence", number)))
    repeat, random, begun = rng.random(3) < (recipe.repeats, 0.5, 0.5)
    if not repeat:
        return _cut(stream_N, recipe.length, rng.random())
    period = recipe.low + int(rng.random() * (recipe.high - recipe.low + 1))
    drawn = USUAL + (rng.random(period) * (vocab - USUAL)).astype(np.int32)
    segment = drawn if random else _cut(stream_N, period, rng.random())
    copies = np.tile(segment, recipe.length // period + 1)
    # Half begin as a text does: what follows must not hang on a token that stands there.
    return np.concatenate([[BOS_ID], copies])[: recipe.length] if begun else copies[: recipe.length]


def _cut(stream_N: Array, length: int, place: float) -> Array:
    start = int(place * (len(stream_N) - length + 1))
    return stream_N[start : start + length]
