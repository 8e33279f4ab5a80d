"""Code products in Triton: one kernel of weighted segment sums, for rows and for latents, and one of dot products.

Decoding sums weight rows over the pairs of a row; a weight's gradient sums rows over the pairs of a latent, in the
order ``Pattern.by_latent`` finds once. Both are one kernel. Popular latents would keep one program busy for long, so
their pairs are cut into pieces and the pieces summed by the same kernel: no atomics, so results repeat bit for bit.
Correct in Triton's interpreter, in float32 and float16; not timed yet, so no record chooses it.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs, P pieces, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from jobs.codes import Pattern
from jobs.errors import JobError
from jobs.kernels.codes.contract import FORMS, PRODUCTS

tl: Any = None
"""``triton.language``, once something runs: kernels below are plain functions until then."""


# Parameters carry no types but those of constants: the compiler reads annotations as its own.
def _segment_sum(  # type: ignore[no-untyped-def]
    out,
    table,
    index,
    value,
    starts,
    ends,
    width,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write ``out[g] = Σ value[n] · table[index[n]]`` over n from starts[g] to ends[g], BLOCK columns a program."""
    group = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    first = tl.load(starts + group)
    last = tl.load(ends + group)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for at in range(first, last, ROWS):
        pair = at + tl.arange(0, ROWS)
        live = pair < last
        row = tl.load(index + pair, mask=live, other=0).to(tl.int64)
        mask = live[:, None] & inside[None, :]
        x = tl.load(table + row[:, None] * width + column[None, :], mask=mask, other=0.0)
        x = x.to(tl.float32)
        if WEIGHTED:
            x = x * tl.load(value + pair, mask=live, other=0.0).to(tl.float32)[:, None]
        total += tl.sum(x, axis=0)
    tl.store(out + group * width + column, total, mask=inside)


def _pair_dots(  # type: ignore[no-untyped-def]
    out,
    left,
    right,
    left_index,
    right_index,
    pairs,
    width,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Write ``out[n] = left[left_index[n]] · right[right_index[n]]``, PAIRS pairs a program."""
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    live = pair < pairs
    a = tl.load(left_index + pair, mask=live, other=0).to(tl.int64)
    b = tl.load(right_index + pair, mask=live, other=0).to(tl.int64)
    total = tl.zeros((PAIRS,), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = live[:, None] & (column < width)[None, :]
        x = tl.load(left + a[:, None] * width + column[None, :], mask=mask, other=0.0)
        y = tl.load(right + b[:, None] * width + column[None, :], mask=mask, other=0.0)
        total += tl.sum(x.to(tl.float32) * y.to(tl.float32), axis=1)
    tl.store(out + pair, total, mask=live)


@cache
def _kernels() -> tuple[Any, Any]:
    """Return both kernels, compiled at their first launch."""
    global tl
    try:
        import triton
        import triton.language
    except ModuleNotFoundError as error:
        raise JobError(
            "products of codes were asked of the form 'triton', and the package triton is not installed. Nothing "
            "was computed. pip install 'actlake[gpu]', or use the form 'bags'.",
            kind="missing-package",
        ) from error
    tl = triton.language
    return triton.jit(_segment_sum), triton.jit(_pair_dots)


@FORMS.register("triton")
@dataclass(frozen=True, kw_only=True, slots=True)
class Triton:
    """The products in float32 or 2-byte floats, summed in float32.

    Raises
    ------
    JobError
        ``missing-package`` where triton is not installed; ``dtype-mismatch`` for float64.
    """

    kind: ClassVar[str]
    dense: ClassVar[bool] = False
    rounding: ClassVar[str] = "input"
    products: ClassVar[tuple[str, ...]] = PRODUCTS
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    block: int = 512
    """Columns of a program; a power of two."""
    rows: int = 8
    """Gathered rows in flight, or pairs of a program of dot products; a power of two."""
    piece_pairs: int = 1024
    """Pairs of a latent that one program sums at most."""

    def gather_sum(self, pattern: Pattern, value_N: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``z_RL @ w_LD``, [R, D]."""
        starts = pattern.row_starts
        ends = _ends(starts, len(value_N))
        return self._sums(w_LD, pattern.latent, value_N, starts, ends, dtype=w_LD.dtype)

    def scatter_sum(self, pattern: Pattern, value_N: Tensor, x_RD: Tensor) -> Tensor:
        """Return ``z_RL.T @ x_RD``, [L, D]."""
        order, row_N, starts_L = pattern.by_latent
        starts_P, ends_P, pieces_L = _pieces(starts_L, len(value_N), self.piece_pairs)
        whole = len(starts_P) == pattern.latents
        # Pieces stay float32 until they are added up: they may overflow, or cancel, in less.
        kept = x_RD.dtype if whole else torch.float32
        parts_PD = self._sums(x_RD, row_N, value_N[order], starts_P, ends_P, dtype=kept)
        if whole:
            return parts_PD
        ends_L = pieces_L.cumsum(0)
        which_P = torch.arange(len(parts_PD), device=x_RD.device)
        return self._sums(parts_PD, which_P, None, ends_L - pieces_L, ends_L, dtype=x_RD.dtype)

    def dots(self, pattern: Pattern, x_RD: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``(x_RD @ w_LD.T)[row, latent]``, [N]."""
        _refuse_wide(x_RD)
        _, kernel = _kernels()
        pairs, width = len(pattern.row), x_RD.shape[1]
        out_N = x_RD.new_empty(pairs)
        if pairs:
            kernel[(-(-pairs // self.rows),)](
                out_N, x_RD.contiguous(), w_LD.contiguous(), pattern.row, pattern.latent, pairs, width,
                BLOCK=self.block, PAIRS=self.rows,
            )  # fmt: skip
        return out_N

    def _sums(
        self,
        table: Tensor,
        index_N: Tensor,
        value_N: Tensor | None,
        starts_G: Tensor,
        ends_G: Tensor,
        *,
        dtype: torch.dtype,
    ) -> Tensor:
        """Return the weighted sums of table rows over each group's pairs, [G, D]."""
        _refuse_wide(table)
        kernel, _ = _kernels()
        groups, width = len(starts_G), table.shape[1]
        out_GD = table.new_empty(groups, width, dtype=dtype)
        if out_GD.numel():
            weights = index_N if value_N is None else value_N.contiguous()
            kernel[(groups, -(-width // self.block))](
                out_GD, table.contiguous(), index_N, weights, starts_G, ends_G, width,
                WEIGHTED=value_N is not None, BLOCK=self.block, ROWS=self.rows,
            )  # fmt: skip
        return out_GD


def _refuse_wide(x: Tensor) -> None:
    """Raise ``dtype-mismatch`` for float64, which sums in float32 would round without a word."""
    if x.dtype == torch.float64:
        raise JobError(
            "the form 'triton' was asked for a product in float64; it sums in float32. Nothing was computed. Use the "
            "form 'bags'.",
            kind="dtype-mismatch",
        )


def _ends(starts_G: Tensor, pairs: int) -> Tensor:
    return torch.cat([starts_G, starts_G.new_tensor([pairs])])[1:].contiguous()


def _pieces(starts_L: Tensor, pairs: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return where pieces of at most ``longest`` pairs start and end, [P] each, and how many each latent has."""
    ends_L = _ends(starts_L, pairs)
    pieces_L = torch.clamp((ends_L - starts_L + longest - 1) // longest, min=1)
    latent_P = torch.repeat_interleave(pieces_L)
    first_L = pieces_L.cumsum(0) - pieces_L
    rank_P = torch.arange(len(latent_P), device=starts_L.device) - first_L[latent_P]
    starts_P = starts_L[latent_P] + rank_P * longest
    return starts_P, torch.minimum(starts_P + longest, ends_L[latent_P]), pieces_L
