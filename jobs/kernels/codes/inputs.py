"""Codes to compute on: those of a store, and redraws of them that keep some of their structure.

Real codes are far from random: few latents fire often, and together. ``idx_uniform`` keeps how many latents each
row has and nothing else; ``idx_zipf`` also keeps how uneven the latents' popularity is (one exponent, fitted).
What differs between the three is what structure does to a kernel's time.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from jobs.codebook import Codebook
from jobs.codes import Pattern
from jobs.errors import JobError
from jobs.kernels.codes.contract import Case, Shape
from store import Store
from store.schema import Group

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONTROLS = ("real", "idx_uniform", "idx_zipf")
ZIPF = 1.0
"""Exponent where there are no real codes to fit: popularity falls as 1/rank."""
BLOCK_DRAWS = 1 << 22
"""Random numbers drawn at once."""


def seeded(seed: int, purpose: str) -> torch.Generator:
    """Return a generator of its own for each purpose."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def redraw(counts_R: Tensor, latents: int, *, exponent: float, seed: int) -> Pattern:
    """Return a pattern with ``counts_R`` distinct latents a row, drawn by popularity ``rank^-exponent``.

    Exponent 0 is uniform. Which latent has which rank is drawn as well. Rows draw without replacement (the largest
    of ``log p`` plus Gumbel noise), so the most popular latents are somewhat less popular than the law says.
    """
    generator = seeded(seed, f"pattern/{latents}/{exponent}")
    rank_L = torch.randperm(latents, generator=generator) + 1
    log_p_L = -exponent * rank_L.double().log().float()
    block_rows, kept = max(1, BLOCK_DRAWS // latents), []
    for start in range(0, len(counts_R), block_rows):
        count_r = counts_R[start : start + block_rows]
        noise_rL = torch.rand(len(count_r), latents, generator=generator).clamp_(min=1e-38)
        key_rL = log_p_L - torch.log(-noise_rL.log())
        most = int(count_r.max()) if len(count_r) else 0
        latent_rK = key_rL.topk(most, dim=1).indices
        taken_rK = torch.arange(most) < count_r.unsqueeze(1)
        masked_rK = torch.where(taken_rK, latent_rK, latents)
        kept.append(masked_rK.sort(dim=1).values[taken_rK])
    row_N = torch.repeat_interleave(torch.arange(len(counts_R)), counts_R)
    return Pattern(row_N, torch.cat(kept), len(counts_R), latents)


def fitted_exponent(latent_N: Tensor, latents: int) -> float:
    """Return s of the popularity ``rank^-s`` that fits best, by least squares of logarithms over fired latents."""
    counts = torch.bincount(latent_N, minlength=latents).sort(descending=True).values
    counts = counts[counts > 0].double().log()
    if len(counts) < 2:
        return 0.0
    rank = torch.arange(1, len(counts) + 1, dtype=torch.float64).log()
    slope = ((rank - rank.mean()) * (counts - counts.mean())).sum()
    return max(0.0, -float(slope / (rank - rank.mean()).square().sum()))


def drawn(pattern: Pattern, width: int, *, seed: int) -> Case:
    """Return a case of random float32 values, weights and rows over a pattern: codes positive, unit weights."""
    generator = seeded(seed, "values")
    w_LD = torch.randn(pattern.latents, width, generator=generator)
    return Case(
        pattern=pattern,
        value=torch.rand(len(pattern.row), generator=generator) + 0.1,
        w=torch.nn.functional.normalize(w_LD, dim=1),
        x=torch.randn(pattern.rows, width, generator=generator),
    )


def synthetic(shape: Shape, *, exponent: float = ZIPF, seed: int = 0) -> Case:
    """Return a case of a shape, every row with as many pairs as the next, within one."""
    low, more = divmod(shape.pairs, shape.rows)
    counts_R = torch.full((shape.rows,), low, dtype=torch.int64)
    counts_R[:more] += 1
    pattern = redraw(counts_R, shape.latents, exponent=exponent, seed=seed)
    return drawn(pattern, shape.width, seed=seed)


def coded_group(store: Store, group: str) -> Group:
    """Return a group that holds codes of a dictionary, or raise ``no-codes`` (``JobError``) with those that do."""
    held = store.groups.get(group)
    if held is None or "dictionary" not in held.recipe:
        coded = [name for name, found in store.groups.items() if "dictionary" in found.recipe]
        raise JobError(
            f"codes were asked of group {group!r} of {store.url}; groups with a dictionary's codes: "
            f"{', '.join(coded) or 'none'}. Nothing was measured. Name one of them, or make one: "
            "actlake encode DICTIONARY --on URL.",
            kind="no-codes",
        )
    return held


def from_store(store: Store, group: str, rows: int, *, seeds: Sequence[int]) -> list[Case]:
    """Return real codes of ``rows`` rows drawn from a group, one case a seed, with their rows and decoder.

    Raises
    ------
    JobError
        ``no-codes``: no group of that name holds codes of a dictionary, or it has fewer rows.
    """
    held = coded_group(store, group)
    book = Codebook.from_bytes(store.asset(str(held.recipe["dictionary"])))
    table = store.arrow(group)
    row_of_N = table["row"].to_numpy()  # ascending
    starts = np.flatnonzero(np.diff(row_of_N, prepend=-1))
    if len(starts) < rows:
        raise JobError(
            f"{rows:,} rows of codes were asked of group {group!r} of {store.url}, which has codes of "
            f"{len(starts):,} rows. Nothing was measured. Ask for fewer --rows.",
            kind="no-codes",
        )
    counts = np.diff(np.append(starts, len(row_of_N)))
    latent_of_N, value_of_N = table["latent"].to_numpy(), table["value"].to_numpy()
    column = f"{held.recipe['group']}:{held.recipe['column']}"
    cases = []
    for seed in seeds:
        drawn_R = torch.randperm(len(starts), generator=seeded(seed, "rows")).numpy()[:rows]
        taken = _runs(starts[drawn_R], counts[drawn_R])
        row_N = torch.from_numpy(np.repeat(np.arange(rows), counts[drawn_R]))
        latent_N = torch.from_numpy(latent_of_N[taken].astype(np.int64))
        x = store.gather(column, row_of_N[starts[drawn_R]])
        cases.append(
            Case(
                pattern=Pattern(row_N, latent_N, rows, book.latents),
                value=torch.from_numpy(value_of_N[taken].astype(np.float32)),
                w=book.W_dec_LD,
                x=torch.from_numpy(np.asarray(x, np.float32)).flatten(1),
            )
        )
    return cases


def _runs(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``start, start + 1, …`` of every run, one run after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))
