"""What an ingest is told: science that is hashed into recipes, and placement that is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ingest.errors import IngestError
from ingest.generation import Generation
from ingest.sampling import Sample

BOS = ("auto", "sequence", "document", "none")
PACKINGS = ("none", "fill")
DUPLICATES = ("keep", "drop")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokensConfig:
    """How documents become rows."""

    source: Any
    """A registered source."""
    rows: int | None = None
    """Rows to take at most; None takes the whole source."""
    context: int | None = None
    """Tokens of a sequence, special tokens included; None is min(256, the model's positions)."""
    special_tokens: bool = True
    """Whether sequences get the tokenizer's own special tokens (rows flagged as such)."""
    bos: str = "auto"
    """Where special tokens stand: ``auto``, ``sequence``, ``document`` or ``none`` (`ingest.framing.Framing.of`)."""
    packing: str = "none"
    """``none``: a sequence is of one document; ``fill``: documents of a split follow one another, cut every context."""
    duplicates: str = "keep"
    """What becomes of a document whose text an earlier one has: ``keep`` or ``drop``."""
    generation: Generation | None = None
    """How a model goes on from every sequence, where one is to."""
    split_seed: int = 0
    text: bool = True
    """Whether documents keep their text in the store."""
    part_rows: int = 16_384

    def __post_init__(self) -> None:
        for name in ("rows", "context", "part_rows"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise IngestError(
                    f"--{name.replace('_', '-')} is {value}; it must be positive. Nothing was written.",
                    kind="bad-number",
                )
        for name, known in (
            ("bos", BOS),
            ("packing", PACKINGS),
            ("duplicates", DUPLICATES),
        ):
            value = getattr(self, name)
            if value not in known:
                raise IngestError(
                    f"--{name} is {value!r}; known: {', '.join(known)}. Nothing was written.",
                    kind="unknown-setting",
                )
        if self.bos != "auto" and not self.special_tokens:
            raise IngestError(
                f"--bos {self.bos} says where special tokens stand, and --no-special-tokens that there are none. Nothing was "
                "written. Leave one of them out.",
                kind="setting-unused",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class HarvestConfig:
    """What a model writes beside the tokens."""

    model: str
    sites: tuple[str, ...] = ("@50%",)
    batch: int = 32
    """Sequences of a batch, or lanes."""
    lanes: bool = False
    """Whether a lane of a batch, a context long, holds as many sequences as fit, none seeing another."""
    dtype: str = "auto"
    store_dtype: str | None = None
    codec: str = "raw"
    attn_implementation: str = "auto"
    """As transformers names it; ``auto`` is ``sdpa`` where the family has it, else ``eager``."""
    device: str = "cpu"
    revision: str | None = None
    allow_nonfinite: bool = False
    sample: Sample | None = None
    """Which rows are kept; None keeps all."""
    weights: tuple[str, ...] = ()
    """Weights to keep beside the columns (`ingest.models.matrices`)."""
    group: str = "acts"
    gradient: str | None = None
    """Rule by which the metric's gradient at the sites is written, in place of their values."""
    metric: str = "nll"
    """What a gradient is of: a registered metric of a sequence."""

    def __post_init__(self) -> None:
        if self.batch <= 0 or not self.sites:
            raise IngestError(
                f"--batch is {self.batch} and --sites {list(self.sites)}; a harvest needs at least one "
                "sequence a batch and one site. Nothing was written.",
                kind="bad-number",
            )
