"""A linear dictionary as it trains: weights, and one batch on its way through them.

Dimensions: R rows, D width read, E width rebuilt, L latents, A some of the latents, N active (row, latent) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from jobs.batches import Widths
from jobs.codes import CodeOps, Pattern, PlainCodeOps
from jobs.dictionaries.contract import START, Forward, Loss, Moment, Score, Sparsifier, derive_seed
from jobs.dictionaries.decoder import decode
from jobs.dictionaries.encoders.linear import (
    LinearScores,
    Section,
    pre_activations,
    sectioned_pre_activations,
)
from jobs.dictionaries.penalty import Penalty
from jobs.dictionaries.ranks import WHOLE, Ranks, Share, shared, summed
from jobs.dictionaries.scores import Raw
from jobs.dictionaries.sparsifiers.batch_topk import BatchTopK
from jobs.dictionaries.sparsifiers.row_topk import RowTopK
from store.errors import InvalidInputError

RAW = Raw()


class Dictionary(nn.Module):
    """A linear dictionary: ``π = (x − b_dec) W_encᵀ + b_enc``, codes by a sparsifier, ``x̂ = f W_dec + b_dec``.

    Parameters
    ----------
    widths, latents
        D, E and L.
    sparsifier
        Which pairs are active in training, and what they are worth.
    losses
        ``(weight, loss)`` pairs; the objective is their weighted sum.
    penalty
        A further loss whose weight is ramped up and may follow a controller.
    seed
        Decides the initial directions.
    centred
        Whether ``b_dec`` is taken from the rows before they are read; they must be what is rebuilt.
    unit
        Whether decoder rows are kept at norm 1.
    tied
        Whether both matrices start equal. Otherwise the decoder starts at 0 and the first steps fill it.
    score
        What selection compares.
    prefixes
        Numbers of latents, rising, whose reconstructions the losses see beside that of all.
    skip
        Whether rows also reach the target through a matrix of their own, which starts at 0.
    causal
        Whether latents are shared out evenly over the inputs, a latent of input s reads it alone and writes to
        the outputs from s on: a cross-layer transcoder.
    start_bias
        What the encoder's bias starts as.
    start_norm
        Norm that encoder rows start with.

    Notes
    -----
    Weight matrices are [L, ·], float32 masters. Selection runs on ``compute_dtype`` products; the values of the
    chosen pairs, the reconstruction and the losses are computed in the masters' dtype. Rows start uniform on the
    sphere. Source: Gao et al., "Scaling and Evaluating Sparse Autoencoders" (2406.04093), section 2 and A.
    """

    def __init__(
        self,
        widths: int | Widths,
        latents: int,
        *,
        sparsifier: Sparsifier,
        losses: tuple[tuple[float, Loss], ...],
        seed: int,
        penalty: Penalty | None = None,
        centred: bool = True,
        unit: bool = True,
        tied: bool = True,
        score: Score = RAW,
        prefixes: Sequence[int] = (),
        skip: bool = False,
        causal: bool = False,
        start_bias: float = 0.0,
        start_norm: float = 1.0,
    ) -> None:
        super().__init__()
        self.widths = widths = Widths.of(widths) if isinstance(widths, int) else widths
        self.latents, self.centred, self.unit = latents, centred, unit
        self.sections = _sections(widths, latents, causal=causal)
        read = self.sections[0].columns.stop
        generator = torch.Generator().manual_seed(derive_seed(seed, "dictionary/init"))
        directions_LD = torch.randn(latents, read, generator=generator)
        rows_LD = nn.functional.normalize(directions_LD, dim=1)
        start_LE = rows_LD if tied else torch.zeros(latents, widths.out_width)
        self.w_dec_LD = nn.Parameter(start_LE.clone())
        self.w_enc_LD = nn.Parameter(start_norm * rows_LD)
        self.b_enc_L = nn.Parameter(torch.full((latents,), start_bias))
        self.b_dec_D = nn.Parameter(torch.zeros(widths.out_width))
        self.w_skip_DE = nn.Parameter(torch.zeros(widths.width, widths.out_width)) if skip else None
        if causal:
            mask_LE = self._may_write()
            self.register_buffer("_may_write_LE", mask_LE, persistent=False)
            self.w_dec_LD.register_hook(  # type: ignore[no-untyped-call]
                lambda grad_LE: grad_LE * self._may_write_LE
            )
        self.sparsifier, self.losses, self.penalty, self.score = sparsifier, losses, penalty, score
        self.prefixes = (*prefixes, latents) if prefixes else (latents,)
        self.compute_dtype = torch.float32
        self.ops: CodeOps = PlainCodeOps()
        self.share: Share = WHOLE

    @property
    def width(self) -> int:
        """Values in a row that is read, D."""
        return self.widths.width

    def _may_write(self) -> Tensor:
        """Return 1 where a latent of a causal dictionary may write, float32 [L, E]."""
        mask_LE = torch.zeros(self.latents, self.widths.out_width)
        low = 0
        for section, width in zip(self.sections, self.widths.outputs, strict=True):
            mask_LE[section.latents, low:] = 1
            low += width
        return mask_LE

    def read(self, x_RD: Tensor) -> Tensor:
        """Return the rows as the encoder sees them, with the gradient of what was taken from them."""
        return x_RD - self._origin() if self.centred else x_RD

    def _origin(self) -> Tensor:
        """Return what is taken from rows; where latents are shared out, each rank's part adds to its gradient."""
        return shared(self.b_dec_D, self._latent_ranks)

    def keep_latents(self, ranks: Ranks) -> None:
        """Keep this rank's run of the latents and leave the others to the other ranks.

        Raises
        ------
        InvalidInputError
            ``cannot-share-latents``: the dictionary's losses or sections need all latents in one place.
        """
        each = self.latents // ranks.world
        parts = (len(self.prefixes) > 1, len(self.sections) > 1, self.penalty is not None)
        if (
            any(parts)
            or not isinstance(self.sparsifier, RowTopK | BatchTopK)
            or self.latents % ranks.world
        ):
            raise InvalidInputError(
                f"a dictionary of {self.latents} latents with {type(self.sparsifier).__name__} was to be shared out by "
                f"latents over {ranks.world} processes; that takes TopK or BatchTopK, one prefix, no penalty, and as many "
                "latents for each. Nothing was started. Train it by rows, or another variant.",
                kind="cannot-share-latents",
            )
        mine = slice(ranks.rank * each, (ranks.rank + 1) * each)
        for name in ("w_enc_LD", "w_dec_LD", "b_enc_L"):
            setattr(self, name, nn.Parameter(getattr(self, name).detach()[mine].clone()))
        self.share = Share(ranks, (mine.start, self.latents))
        self.latents, self.prefixes = each, (each,)
        self.sections = _sections(self.widths, each, causal=False)

    @property
    def _latent_ranks(self) -> Ranks:
        return self.share.latent_ranks

    def linear_scores(self, x_RD: Tensor, weight_L: Tensor | None = None) -> LinearScores:
        """Return the pre-activations of rows, each latent's times ``weight_L``, block by block, without gradient."""
        w_LD, b_L = self.w_enc_LD.detach(), self.b_enc_L.detach()
        if weight_L is not None:
            w_LD, b_L = w_LD * weight_L.unsqueeze(1), b_L * weight_L
        rows_RD = self.read(x_RD).detach()
        return LinearScores(rows_RD, w_LD, b_L, self.compute_dtype, self.sections, self.share)

    def activate(
        self, x_RD: Tensor, g_RD: Tensor | None = None, *, when: Moment = START
    ) -> tuple[Pattern, Tensor, Tensor]:
        """Return the pairs of a batch in training mode, their pre-activations [N] and their codes [N]."""
        pattern = self.sparsifier.choose(self.score(self, x_RD, g_RD), when)
        return pattern, *self.values(pattern, x_RD)

    def values(self, pattern: Pattern, x_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pre-activations and the codes at the pairs of a pattern, [N] each; differentiable."""
        if self.centred:
            centred_RD, origin_D = x_RD - self.b_dec_D.detach(), self._origin()
        else:
            centred_RD, origin_D = x_RD, None
        if len(self.sections) > 1:
            pre_N = sectioned_pre_activations(
                centred_RD, self.w_enc_LD, self.b_enc_L, pattern, self.ops, self.sections
            )
        else:
            pre_N = pre_activations(
                centred_RD, self.w_enc_LD, self.b_enc_L, pattern, self.ops, origin_D=origin_D
            )
        return pre_N, self.sparsifier.value(pre_N, pattern, self.b_enc_L)

    def dense_pre(self, x_RD: Tensor, latents_A: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the pre-activations of some latents for all rows, [R, A], in ``dtype``; differentiable."""
        x_RD = self.read(x_RD).to(dtype)
        parts = []
        for section in self.sections:
            low, high = section.latents.start, section.latents.stop
            mine_A = latents_A[(latents_A >= low) & (latents_A < high)]
            w_AD = self.w_enc_LD[mine_A].to(dtype)
            parts.append(x_RD[:, section.columns] @ w_AD.t() + self.b_enc_L[mine_A].to(dtype))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def decode(self, pattern: Pattern, value_N: Tensor, x_RD: Tensor | None = None) -> Tensor:
        """Return the reconstruction [R, E] of codes; one with a skip takes the rows read too."""
        part_RE = decode(value_N, self.w_dec_LD, pattern, self.ops)
        hat_RE = summed(part_RE, self._latent_ranks) + self.b_dec_D
        if self.w_skip_DE is None:
            return hat_RE
        assert x_RD is not None
        return hat_RE + x_RD @ self.w_skip_DE

    def _hats(self, pattern: Pattern, value_N: Tensor, x_RD: Tensor) -> tuple[Tensor, ...]:
        """Return the reconstructions by growing prefixes; each pair is decoded once."""
        if len(self.prefixes) == 1:
            return (self.decode(pattern, value_N, x_RD),)
        hats: list[Tensor] = []
        for low, high in pairwise((0, *self.prefixes)):
            at = ((pattern.latent >= low) & (pattern.latent < high)).nonzero().squeeze(1)
            mine = Pattern(pattern.row[at], pattern.latent[at], pattern.rows, pattern.latents)
            part_RE = decode(value_N[at], self.w_dec_LD, mine, self.ops)
            part_RE = summed(part_RE, self._latent_ranks)
            hats.append(part_RE + (hats[-1] if hats else self.b_dec_D))
        return tuple(hats)

    def forward(
        self,
        x_RD: Tensor,
        y_RE: Tensor | None = None,
        g_RD: Tensor | None = None,
        *,
        variance: float = 1.0,
        dead: Tensor | None = None,
        when: Moment = START,
    ) -> Forward:
        """Run a batch of scaled rows [R, D] (targets [R, E], gradients [R, D]) through in training mode."""
        pattern, pre_N, value_N = self.activate(x_RD, g_RD, when=when)
        none = torch.empty(0, dtype=torch.int64, device=x_RD.device)
        return Forward(
            dictionary=self,
            x=x_RD,
            y=x_RD if y_RE is None else y_RE,
            pattern=pattern,
            pre=pre_N,
            value=value_N,
            hats=self._hats(pattern, value_N, x_RD),
            variance=variance,
            dead=none if dead is None else dead,
            when=when,
        )

    def loss(self, forward: Forward) -> Tensor:
        """Return the training objective of a batch, a scalar."""
        terms = [weight * loss(forward) for weight, loss in self.losses]
        if self.penalty is not None:
            terms.append(self.penalty.weight_at(forward.when) * self.penalty.loss(forward))
        return torch.stack(terms).sum()

    def encoder(self) -> Tensor:
        """Return the encoder as one matrix [D, L] on the inputs side by side, zero where a latent does not read."""
        if len(self.sections) == 1:
            return self.w_enc_LD.t()
        blocks = [self.w_enc_LD[section.latents].t() for section in self.sections]
        whole: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        return whole

    def source_norms(self) -> Tensor:
        """Return the norm of what each latent writes to each output, [L, outputs]; differentiable."""
        parts = torch.split(self.w_dec_LD, list(self.widths.outputs), dim=1)
        return torch.stack([part.norm(dim=1) for part in parts], dim=1)


def _sections(widths: Widths, latents: int, *, causal: bool) -> tuple[Section, ...]:
    """Return which latents read which columns."""
    if not causal:
        return (Section(slice(0, latents), slice(0, widths.width)),)
    each, width = latents // len(widths.inputs), widths.inputs[0]
    return tuple(
        Section(slice(at * each, (at + 1) * each), slice(at * width, (at + 1) * width))
        for at in range(len(widths.inputs))
    )
