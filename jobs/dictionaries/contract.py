"""What the parts of a dictionary agree on: feed, scores, sparsifier, loss, dictionary and run config.

A variant is a composition of pieces and nothing else; the training loop knows only this file. Gradients
come from autograd over two sparse products, so a new loss or sparsifier brings no backward of its own.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from jobs.codes import CodeOps, Pattern, PlainCodeOps
from jobs.dictionaries.decoder import decode
from jobs.dictionaries.encoders.linear import LinearScores, pre_activations
from store.errors import InvalidInputError
from store.registry import Registry

VARIANTS: Registry = Registry("variant", "jobs.dictionaries.variants")

PRECISIONS = ("auto", "bfloat16", "float32")


class Feed(Protocol):
    """Shuffled rows in batches, restartable at any batch."""

    width: int
    rows: int
    """Rows in one epoch."""

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (row ids int64[B], rows float32[B, width]) from batch ``start`` on.

        Epoch follows epoch without an end; batch ``i`` is the same whatever ``start`` was.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return what decides the batches (pin, filter, seed, window), JSON values, for recipes."""
        ...


class Scores(Protocol):
    """Selection scores of a batch, one block of rows at a time."""

    rows: int
    latents: int

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, scores [r, L]); a block is valid until the next one is asked for."""
        ...


Sparsifier = Callable[[Scores], Pattern]
"""Chooses the active pairs of a batch. Only positive scores are ever chosen."""


@dataclass(frozen=True)
class Forward:
    """One batch on its way through a dictionary, as the losses see it; rows are in scaled units."""

    dictionary: Dictionary
    x: Tensor
    pattern: Pattern
    value: Tensor
    """Codes at the pairs of the pattern, [N]; carries gradients, as does ``x_hat`` [R, D]."""
    x_hat: Tensor
    variance: float
    """E‖x − E x‖² of the run's rows."""
    dead: Tensor
    """Latents that have not fired for the dead window, int64, ascending."""


Loss = Callable[[Forward], Tensor]


class Dictionary(nn.Module):
    """A linear dictionary with unit decoder rows: ``π = (x − b_dec) W_encᵀ + b_enc``, codes ``ReLU(π)``.

    Parameters
    ----------
    width, latents
        D and L.
    sparsifier
        Which pairs are active in training.
    losses
        ``(weight, loss)`` pairs; the objective is their weighted sum.
    seed
        Decides the initial directions.

    Notes
    -----
    Both weight matrices are [L, D], float32 masters. Selection runs on ``compute_dtype`` products; the
    values of the chosen pairs, the reconstruction and the losses are computed in the masters' dtype.
    ``W_enc`` starts as ``W_dec`` (tied), rows uniform on the sphere.
    Source: Gao et al., "Scaling and Evaluating Sparse Autoencoders" (2406.04093), section 2 and A.
    """

    def __init__(
        self,
        width: int,
        latents: int,
        *,
        sparsifier: Sparsifier,
        losses: tuple[tuple[float, Loss], ...],
        seed: int,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(derive_seed(seed, "dictionary/init"))
        directions = torch.randn(latents, width, generator=generator)
        rows_LD = nn.functional.normalize(directions, dim=1)
        self.w_dec_LD = nn.Parameter(rows_LD)
        self.w_enc_LD = nn.Parameter(rows_LD.clone())
        self.b_enc_L = nn.Parameter(torch.zeros(latents))
        self.b_dec_D = nn.Parameter(torch.zeros(width))
        self.sparsifier = sparsifier
        self.losses = losses
        self.compute_dtype = torch.float32
        self.ops: CodeOps = PlainCodeOps()

    @property
    def latents(self) -> int:
        """Number of latents, L."""
        return int(self.b_enc_L.shape[0])

    @property
    def width(self) -> int:
        """Values in a row, D."""
        return int(self.b_dec_D.shape[0])

    def activate(self, x_RD: Tensor) -> tuple[Pattern, Tensor]:
        """Return the active pairs of a batch in training mode and their values [N]."""
        centred_RD = x_RD - self.b_dec_D.detach()
        pattern = self.sparsifier(
            LinearScores(centred_RD, self.w_enc_LD, self.b_enc_L, self.compute_dtype)
        )
        pre = pre_activations(
            centred_RD,
            self.w_enc_LD,
            self.b_enc_L,
            pattern,
            self.ops,
            origin_D=self.b_dec_D,
        )
        return pattern, torch.relu(pre)

    def decode(self, pattern: Pattern, value: Tensor) -> Tensor:
        """Return the reconstruction [R, D] of codes."""
        return decode(value, self.w_dec_LD, pattern, self.ops) + self.b_dec_D

    def forward(
        self, x_RD: Tensor, *, variance: float = 1.0, dead: Tensor | None = None
    ) -> Forward:
        """Run a batch of scaled rows [R, D] through in training mode."""
        pattern, value = self.activate(x_RD)
        none = torch.empty(0, dtype=torch.int64, device=x_RD.device)
        return Forward(
            dictionary=self,
            x=x_RD,
            pattern=pattern,
            value=value,
            x_hat=self.decode(pattern, value),
            variance=variance,
            dead=none if dead is None else dead,
        )

    def loss(self, forward: Forward) -> Tensor:
        """Return the training objective of a batch, a scalar."""
        terms = [weight * loss(forward) for weight, loss in self.losses]
        return torch.stack(terms).sum()


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
    """Mean active latents of a row; the exported threshold is calibrated to it."""

    def build(self, width: int, *, seed: int) -> Dictionary:
        """Return a fresh dictionary for rows of ``width``; the same seed gives the same bits."""
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
    dead_rows: int | None = None
    """A latent is dead after so many rows without firing; None: min(10 M, 10 % of the run)."""
    threshold_decay: float = 0.999
    """Decay of the threshold's running mean, from step min(1000, half the run) on."""
    threshold_rows: int = 262_144
    """Rows, at most one epoch, on which the final threshold is set. L0 varies by about k/2 between
    rows, so 262,144 of them leave a standard error of 0.1 % of k."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "variant", dict(self.variant))
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
            _require(name, getattr(self, name), "> 0", holds=getattr(self, name) > 0)
        for name in ("lr", "dead_rows"):
            value = getattr(self, name)
            _require(name, value, "> 0 or null", holds=value is None or value > 0)
        for name in ("decay_share", "threshold_decay"):
            _require(name, getattr(self, name), "in [0, 1]", holds=0 <= getattr(self, name) <= 1)
        decay = self.second_decay
        _require("second_decay", decay, "in [0, 1) or null", holds=decay is None or 0 <= decay < 1)
        warmup = self.warmup_steps
        _require("warmup_steps", warmup, ">= 0 or null", holds=warmup is None or warmup >= 0)
        known = self.precision in PRECISIONS
        _require("precision", self.precision, f"one of {', '.join(PRECISIONS)}", holds=known)

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


@dataclass(frozen=True)
class ArrayFeed:
    """Rows in memory as a feed: every epoch is a fresh permutation, batches run over epoch ends.

    Parameters
    ----------
    x
        float32 [R, D]; kept, not copied.
    batch_rows
        Rows of every batch, at most R.
    seed
        Decides the permutations.
    """

    x: Tensor
    batch_rows: int
    seed: int = 0
    width: int = field(init=False)
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        rows, width = self.x.shape
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "width", width)
        fits = 0 < self.batch_rows <= rows
        _require("batch_rows", self.batch_rows, f"in [1, {rows}], the rows given", holds=fits)

    def _order(self, epoch: int) -> Tensor:
        seed = derive_seed(self.seed, "feed/epoch", epoch)
        return torch.randperm(self.rows, generator=torch.Generator().manual_seed(seed))

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (row ids, rows) from batch ``start`` on, without an end."""
        epoch, offset = divmod(start * self.batch_rows, self.rows)
        order = self._order(epoch)[offset:]
        while True:
            while len(order) < self.batch_rows:
                epoch += 1
                order = torch.cat([order, self._order(epoch)])
            row_ids, order = order[: self.batch_rows], order[self.batch_rows :]
            yield row_ids, self.x.index_select(0, row_ids)

    def state(self) -> dict[str, Any]:
        """Return the seed and a digest of the rows."""
        digest = hashlib.sha256(self.x.contiguous().numpy().tobytes()).hexdigest()
        return {"seed": self.seed, "batch_rows": self.batch_rows, "sha256": digest}


def derive_seed(root: int, purpose: str, index: int = 0) -> int:
    """Return the 63-bit seed of one purpose: sha256 of ``root/purpose/index``, its first 8 bytes."""
    digest = hashlib.sha256(f"{root}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_topk(kind: str, *, latents: int, k: int, aux_weight: float) -> None:
    """Refuse sizes that no top-k dictionary can have: ``k-too-large``, ``invalid-config``."""
    _require("latents", latents, ">= 1", holds=latents >= 1)
    _require("k", k, ">= 1", holds=k >= 1)
    _require("aux_weight", aux_weight, ">= 0", holds=aux_weight >= 0)
    if k > latents:
        raise InvalidInputError(
            f"a {kind} dictionary was asked for k = {k} active latents a row, but it has only"
            f" {latents} latents (fields k and latents of the variant). Nothing was started."
            " Lower k or raise latents.",
            kind="k-too-large",
        )


def _require(name: str, value: Any, legal: str, *, holds: bool) -> None:
    if not holds:
        raise InvalidInputError(
            f"{name} was given as {value!r}; it must be {legal}. Nothing was started. Change {name}.",
            kind="invalid-config",
        )
