"""What the parts of a dictionary agree on: feed, scores, sparsifier, loss, variant and run config.

A variant is a composition of pieces and nothing else; the training loop knows only this file. Gradients
come from autograd over two sparse products, so a new loss or sparsifier brings no backward of its own.

Dimensions: R rows, D width read, E width rebuilt, L latents, N active (row, latent) pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor

from jobs.batches import Batch, Widths
from store.errors import InvalidInputError
from store.registry import Registry

if TYPE_CHECKING:
    import torch

    from jobs.codes import CodeOps, Pattern
    from jobs.dictionaries.ranks import Share

VARIANTS: Registry = Registry("variant", "jobs.dictionaries.variants")


class Feed(Protocol):
    """Shuffled rows in batches, restartable at any batch."""

    widths: Widths
    rows: int
    """Rows in one epoch."""

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield batches of ``batch_rows`` rows from batch ``start`` on.

        Epoch follows epoch without an end; batch ``i`` is the same whatever ``start`` was.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return what decides the batches (pin, filter, seed, window), JSON values, for recipes."""
        ...


class Moment(NamedTuple):
    """Where a run is: step ``step`` of ``steps``, counted from 0."""

    step: int
    steps: int

    @property
    def share(self) -> float:
        """Steps taken over steps in all, in [0, 1)."""
        return self.step / self.steps


START = Moment(0, 1)


class Scores(Protocol):
    """Selection scores of a batch, one block of rows at a time."""

    rows: int
    latents: int
    share: Share
    """What part of the batch's matrix of scores this is."""

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, scores [r, L]); a block is valid until the next one is asked for."""
        ...


class Weights(Protocol):
    """What losses, scores and sparsifiers see of a dictionary."""

    latents: int
    unit: bool
    widths: Widths
    compute_dtype: torch.dtype
    ops: CodeOps
    share: Share
    sparsifier: Sparsifier

    @property
    def w_enc_LD(self) -> Tensor:  # noqa: N802 - the dimension suffix
        """Encoder rows, [L, D]."""
        ...

    @property
    def w_dec_LD(self) -> Tensor:  # noqa: N802 - the dimension suffix
        """Decoder rows, [L, E]."""
        ...

    @property
    def b_enc_L(self) -> Tensor:  # noqa: N802 - the dimension suffix
        """Bias of the encoder, [L]."""
        ...

    @property
    def b_dec_D(self) -> Tensor:  # noqa: N802 - the dimension suffix
        """Bias of the decoder, [E]."""
        ...

    def linear_scores(self, x_RD: Tensor, weight_L: Tensor | None = None) -> Scores:
        """Return the pre-activations of rows, each latent's times ``weight_L``."""
        ...

    def dense_pre(self, x_RD: Tensor, latents_A: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the pre-activations of some latents for all rows, [R, A]."""
        ...

    def source_norms(self) -> Tensor:
        """Return the norm of what each latent writes to each output, [L, outputs]."""
        ...


class Score(Protocol):
    """What selection compares."""

    def __call__(self, dictionary: Weights, x_RD: Tensor, g_RD: Tensor | None, /) -> Scores:
        """Return the scores of scaled rows, and of their gradients where there are any."""
        ...

    def norms(self, dictionary: Weights, /) -> Tensor | None:
        """Return what pre-activations are multiplied by where no gradient is at hand, [L]; None: nothing."""
        ...


class Frozen(NamedTuple):
    """The affine map and threshold that a sparsifier comes to: ``f = p·1[p > θ]``, ``p = gain·π + bias − b_enc·gain``."""

    gain: Tensor
    """Factor of the encoder's rows, [L]."""
    bias: Tensor
    """What takes the place of the encoder's bias, [L]."""
    theta: Tensor | None
    """Threshold of each latent, [L], in units of ``p``; None: one for all, to be set so that rows keep k."""


class Sparsifier(Protocol):
    """Which pairs of a batch are active, and what they are worth. May be a module with parameters."""

    def choose(self, scores: Scores, when: Moment, /) -> Pattern:
        """Return the pairs that a batch keeps, or at least all that get a gradient."""
        ...

    def value(self, pre_N: Tensor, pattern: Pattern, bias_L: Tensor, /) -> Tensor:
        """Return the codes at the pairs, [N], 0 where one is not active; differentiable.

        ``pre_N`` are the encoder's pre-activations there, ``bias_L`` its bias.
        """
        ...

    def frozen(self, bias_L: Tensor) -> Frozen:
        """Return the form for inference, given the encoder's bias."""
        ...


@dataclass(frozen=True)
class Forward:
    """One batch on its way through a dictionary, as the losses see it; rows are in scaled units."""

    dictionary: Weights
    x: Tensor
    """Rows read, [R, D]."""
    y: Tensor
    """Rows to rebuild, [R, E]."""
    pattern: Pattern
    pre: Tensor
    """Pre-activations π at the pairs of the pattern, [N]; carries gradients, as do all below."""
    value: Tensor
    """Codes at the pairs, [N]."""
    hats: tuple[Tensor, ...]
    """Reconstructions [R, E] by growing prefixes of the latents; the last is the whole one's."""
    variance: float
    """E‖y − E y‖² of the run's rows."""
    dead: Tensor
    """Latents that have not fired for the dead window, int64, ascending."""
    when: Moment

    @property
    def x_hat(self) -> Tensor:
        """The reconstruction [R, E]."""
        return self.hats[-1]


Loss = Callable[[Forward], Tensor]


def derive_seed(root: int, purpose: str, index: int = 0) -> int:
    """Return the 63-bit seed of one purpose: sha256 of ``root/purpose/index``, its first 8 bytes."""
    digest = hashlib.sha256(f"{root}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_sizes(kind: str, *, latents: int, k: int, **weights: float) -> None:
    """Refuse sizes that no dictionary can have: ``k-too-large``, ``invalid-config``; weights are >= 0."""
    require("latents", latents, ">= 1", holds=latents >= 1)
    require("k", k, ">= 1", holds=k >= 1)
    for name, weight in weights.items():
        require(name, weight, ">= 0", holds=weight >= 0)
    if k > latents:
        raise InvalidInputError(
            f"a {kind} dictionary was asked for k = {k} active latents a row, but it has only"
            f" {latents} latents (fields k and latents of the variant). Nothing was started."
            " Lower k or raise latents.",
            kind="k-too-large",
        )


def require(name: str, value: Any, legal: str, *, holds: bool) -> None:
    """Refuse a value that does not hold: ``invalid-config``."""
    if not holds:
        raise InvalidInputError(
            f"{name} was given as {value!r}; it must be {legal}. Nothing was started. Change {name}.",
            kind="invalid-config",
        )
