"""What a training run is told: its variant, and everything else that decides its bits besides the rows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from jobs.batches import Widths
from jobs.codes import CodeOps
from jobs.dictionaries.contract import VARIANTS, require
from jobs.dictionaries.dictionary import Dictionary
from store.errors import InvalidInputError

PRECISIONS = ("auto", "bfloat16", "float32")
OPTIMIZERS = ("adam", "adam_8bit")


class OpsChooser(Protocol):
    """Says which operations a run uses. A run keeps what ``choose`` said and builds from it on every resume."""

    def choose(
        self, *, rows: int, width: int, latents: int, k: int, device: str = "cpu"
    ) -> dict[str, Any]:
        """Return the choice for batches of ``rows`` rows with k latents each: JSON values, never by a clock."""
        ...

    def build(self, choice: Mapping[str, Any]) -> CodeOps:
        """Return the operations of a choice."""
        ...


class Variant(Protocol):
    """What ``VARIANTS`` holds: a frozen config that builds the thing it configures."""

    latents: int
    k: int
    """Mean active latents of a row: kept exactly, reached by a controller, or what a threshold is set to."""
    needs: ClassVar[frozenset[str]]
    """What the feed must hold besides rows: ``target``, ``gradient``; ``columns``: it may read several."""

    def build(self, widths: int | Widths, *, seed: int) -> Dictionary:
        """Return a fresh dictionary for rows of these widths; the same seed gives the same bits.

        A variant with a method ``check_batch(rows)`` refuses batches there that it cannot choose over.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that decides a trained dictionary besides its rows; equal configs, equal bits.

    Raises
    ------
    InvalidInputError
        ``invalid-config`` and the variant's own kinds. Nothing is started by a config.
    """

    variant: Mapping[str, Any]
    """``{"kind": name, field: value, …}``; names are in ``VARIANTS``."""
    steps: int
    """Optimizer steps, >= 1."""
    batch_rows: int = 4096
    """Rows of a batch, >= 1; the feed is made for it. Batch-wide sparsifiers want 1024 or more."""
    lr: float | None = None
    """Peak learning rate; None: the rule of ``schedule.learning_rate``."""
    warmup_steps: int | None = None
    """Linear warm-up; None: min(1000, 25 % of the steps)."""
    decay_share: float = 0.2
    """Last share of the steps in which the rate falls linearly to 0, in [0, 1]."""
    second_decay: float | None = None
    """Decay of Adam's second moment, in [0, 1); None: the rule of ``schedule.second_decay``."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient, > 0."""
    seed: int = 0
    """Root of the run's seeds."""
    precision: str = "auto"
    """``float32``, ``bfloat16``, or ``auto``: bfloat16 scores where the CPU or GPU multiplies them."""
    scale_rows: int = 1_000_000
    """Rows, at most one epoch, that estimate input scale, mean and variance."""
    median_rows: int = 32_768
    """Rows whose geometric median starts ``b_dec``."""
    average: float | None = None
    """Decay of a running mean of the weights, in (0, 1), which is then what is frozen; None: the last weights."""
    optimizer: str = "adam"
    """``adam``, or ``adam_8bit``: both moments of the large matrices held in one byte a value."""
    resample_every: int | None = None
    """Steps, >= 1, after which dead latents start afresh from rows that were rebuilt badly, in the first four fifths
    of the run; None: never."""
    dead_rows: int | None = None
    """A latent is dead after so many rows without firing; None: min(10 M, 10 % of the run)."""
    threshold_decay: float = 0.999
    """Decay of the threshold's running mean, from step min(1000, half the run) on."""
    threshold_rows: int = 262_144
    """Rows, at most one epoch, on which the final threshold is set. L0 varies by about k/2 between
    rows, so 262,144 of them leave a standard error of 0.1 % of k."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "variant", json.loads(json.dumps(dict(self.variant))))
        self.build_variant()
        positive = (
            "steps",
            "batch_rows",
            "clip_norm",
            "scale_rows",
            "median_rows",
            "threshold_rows",
        )
        for name in positive:
            require(name, getattr(self, name), "> 0", holds=getattr(self, name) > 0)
        check_batch = getattr(self.build_variant(), "check_batch", None)
        if check_batch is not None:
            check_batch(self.batch_rows)
        for name in ("lr", "dead_rows"):
            value = getattr(self, name)
            require(name, value, "> 0 or null", holds=value is None or value > 0)
        for name in ("decay_share", "threshold_decay"):
            require(name, getattr(self, name), "in [0, 1]", holds=0 <= getattr(self, name) <= 1)
        decay = self.second_decay
        require("second_decay", decay, "in [0, 1) or null", holds=decay is None or 0 <= decay < 1)
        warmup = self.warmup_steps
        require("warmup_steps", warmup, ">= 0 or null", holds=warmup is None or warmup >= 0)
        average = self.average
        require("average", average, "in (0, 1) or null", holds=average is None or 0 < average < 1)
        every = self.resample_every
        require("resample_every", every, ">= 1 or null", holds=every is None or every >= 1)
        named = f"one of {', '.join(OPTIMIZERS)}"
        require("optimizer", self.optimizer, named, holds=self.optimizer in OPTIMIZERS)
        known = self.precision in PRECISIONS
        require("precision", self.precision, f"one of {', '.join(PRECISIONS)}", holds=known)

    def build_variant(self) -> Variant:
        """Return the variant's config object."""
        variant: Variant = VARIANTS.parse(self.variant)
        return variant

    def to_json(self) -> dict[str, Any]:
        """Return the config as JSON values; ``from_json`` undoes it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TrainConfig:
        """Build a config from JSON values; a field it does not have is refused."""
        known = {item.name for item in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise InvalidInputError(
                f"the training config has no field {', '.join(unknown)}; known:"
                f" {', '.join(sorted(known))}. Nothing was started.",
                kind="unknown-field",
            )
        return cls(**fields)
