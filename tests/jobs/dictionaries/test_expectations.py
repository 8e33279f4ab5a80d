"""What is expected of members beside one another, on rows whose making is known: A3 to A6, A7 by resampling, A9.

Bounds are the mean of three seeds less (or plus) three standard deviations, measured once; an expectation that does not
hold is stated where it is tested.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from jobs.batches import Widths
from jobs.dictionaries.array_feed import ArrayFeed
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.evaluate import evaluate
from jobs.dictionaries.train import train

pytestmark = pytest.mark.slow
BATCH = 1024


def trained(
    kind, feed, *, latents, k, steps=1500, seed=0, batch_rows=BATCH, variant=None, **options
):
    """Return the frozen dictionary of a run."""
    config = TrainConfig(
        variant={"kind": kind, "latents": latents, "k": k, **(variant or {})},
        steps=steps,
        batch_rows=batch_rows,
        seed=seed,
        **options,
    )
    return train(feed, config).codebook


def scored(book, x):
    return evaluate(book, [(block, np.zeros(len(block), int)) for block in x.split(BATCH)])


def fires_like(book, x, truth_RN, directions_ND):
    """Return (precision, recall, F1) [N] of each direction's nearest latent for "the feature fires"."""
    nearest = (directions_ND @ book.W_dec_LD.t()).argmax(1)
    said, true = book.encode_dense(x)[:, nearest] > 0, truth_RN > 0
    both = (said & true).sum(0).double()
    precision, recall = both / said.sum(0).clamp(min=1), both / true.sum(0).clamp(min=1)
    return precision, recall, 2 * precision * recall / (precision + recall).clamp(min=1e-9)


def unit(count, width, generator):
    return normalize(torch.randn(count, width, generator=generator), dim=1)


# -- A3 ------------------------------------------------------------------------------------------------

PARENTS, CHILDREN, P_CHILD = 16, 4, 0.8


def family_rows(count, seed, *, made=0, width=96):
    """Rows of parents, each with at most one of four children that fire only with it."""
    directions = unit(PARENTS * (1 + CHILDREN), width, torch.Generator().manual_seed(made))
    generator = torch.Generator().manual_seed(1000 + seed)
    parent = torch.rand(count, PARENTS, generator=generator) < 0.15
    which = torch.randint(0, CHILDREN, (count, PARENTS, 1), generator=generator)
    some = torch.rand(count, PARENTS, 1, generator=generator) < P_CHILD
    child = (torch.arange(CHILDREN) == which) & some & parent[..., None]
    fires = torch.cat([parent, child.flatten(1)], dim=1)
    size = torch.randn(fires.shape, generator=generator).mul(0.3).add(1).abs()
    noise = 0.02 * torch.randn(count, width, generator=generator)
    code = fires * size
    return code @ directions + noise, code, directions


def hierarchy(seed):
    rows, _, _ = family_rows(200_000, seed, made=seed)
    held_out, code, directions = family_rows(20_000, 77, made=seed)
    total = PARENTS * (1 + CHILDREN)
    found = {}
    for kind, variant in (("batch_topk", {}), ("matryoshka", {"shares": [PARENTS / total]})):
        feed = ArrayFeed(rows, BATCH, seed)
        book = trained(kind, feed, latents=total, k=4, seed=seed, variant=variant)
        with_child = code[:, PARENTS:].reshape(-1, PARENTS, CHILDREN).sum(2) > 0
        nearest = (directions[:PARENTS] @ book.W_dec_LD.t()).argmax(1)
        said = book.encode_dense(held_out)[:, nearest] > 0
        absorbed = (said & with_child).sum() / with_child.sum()
        f1 = fires_like(book, held_out, code[:, :PARENTS], directions[:PARENTS])[2].mean()
        found[kind] = (float(f1), float(absorbed), scored(book, held_out).fvu)
    return found


# -- A4 ------------------------------------------------------------------------------------------------


def zipf_rows(count, seed, *, made=0, features=256, width=64, active=4.0):
    directions = unit(features, width, torch.Generator().manual_seed(made))
    share = 1 / torch.arange(1, features + 1).double()
    share = (share * active / share.sum()).clamp(max=0.9).float()
    generator = torch.Generator().manual_seed(1000 + seed)
    fires = torch.rand(count, features, generator=generator) < share
    code = fires * (0.5 + torch.rand(count, features, generator=generator))
    return code @ directions, code, directions


def imbalance(seed):
    rows, _, _ = zipf_rows(200_000, seed, made=seed)
    held_out, _, _ = zipf_rows(50_000, 77, made=seed)
    found = {}
    for name, kind, variant in (
        ("without", "batch_topk", {"aux_weight": 0.0}),
        ("auxk", "batch_topk", {}),
        ("minfire", "minfire", {}),
    ):
        book = trained(
            kind, ArrayFeed(rows, BATCH, seed), latents=256, k=4, seed=seed, variant=variant
        )
        result = scored(book, held_out)
        found[name] = (result.dead / 256, result.fvu)
    return found


# -- A5 ------------------------------------------------------------------------------------------------

LOUD = QUIET = 24


def loud_and_quiet(count, seed, *, made=0, width=64):
    """Rows of loud directions without effect and quiet ones with it, orthonormal; the loss is linear in the quiet."""
    generator = torch.Generator().manual_seed(made)
    directions = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q[: LOUD + QUIET]
    generator = torch.Generator().manual_seed(1000 + seed)
    fires = torch.rand(count, LOUD + QUIET, generator=generator) < 4 / LOUD
    size = 0.75 + 0.5 * torch.rand(count, LOUD + QUIET, generator=generator)
    size[:, LOUD:] *= 0.4
    effect = directions[LOUD:].sum(0).expand(count, width).contiguous()
    return (fires * size) @ directions, effect, directions


def effects(seed):
    rows, g, directions = loud_and_quiet(100_000, seed, made=seed)
    held_out, _, _ = loud_and_quiet(20_000, 77, made=seed)
    found = {}
    for kind, variant in (("topk", {}), ("g_sae", {"weight": 4.0})):
        feed = ArrayFeed(rows, BATCH, seed, g=g if kind == "g_sae" else None)
        book = trained(
            kind, feed, latents=LOUD + QUIET, k=4, seed=seed, variant=variant, steps=1000
        )
        near = (directions @ book.W_dec_LD.t()).amax(1) > 0.9
        found[kind] = (
            float(near[LOUD:].float().mean()),
            float(near[:LOUD].float().mean()),
            scored(book, held_out).fvu,
        )
    return found


# -- A6 ------------------------------------------------------------------------------------------------


def crowded(seed):
    """MCC of TopK at two, four and eight features a dimension."""
    from jobs.dictionaries.matching import mean_matched

    found = {}
    for kind in ("topk", "batch_topk"):
        for times in (2, 4, 8):
            features, width = 32 * times, 32
            generator = torch.Generator().manual_seed(seed)
            directions = unit(features, width, generator)
            fires = torch.rand(150_000, features, generator=generator) < 3 / features
            rows = (fires * (0.5 + torch.rand(fires.shape, generator=generator))) @ directions
            feed = ArrayFeed(rows, BATCH, seed)
            book = trained(kind, feed, latents=features, k=3, seed=seed)
            found[kind, times] = mean_matched(book.W_dec_LD.numpy(), directions.numpy())
    return found


# -- A7, by resampling ----------------------------------------------------------------------------------


def resampled(seed):
    """Share of dead latents of BatchTopK without AuxK, started so that many die, without and with resampling."""
    rows, _, _ = zipf_rows(150_000, seed, made=seed, features=128, width=64)
    found = {}
    for name, every in (("without", None), ("with", 300)):
        book = trained(
            "batch_topk",
            ArrayFeed(rows, BATCH, seed),
            latents=256,
            k=4,
            steps=2000,
            seed=seed,
            variant={"aux_weight": 0.0},
            resample_every=every,
            dead_rows=50 * BATCH,
            lr=0.03,
        )
        found[name] = scored(book, rows[:50_000]).dead / 256
    return found


# -- A9 ------------------------------------------------------------------------------------------------


class InOrder(ArrayFeed):
    """Rows as they lie, or shuffled within windows of so many rows."""

    window = 1

    def _order(self, epoch):
        order = torch.arange(self.rows)
        if self.window <= 1:
            return order
        generator = torch.Generator().manual_seed(epoch)
        pieces = [p[torch.randperm(len(p), generator=generator)] for p in order.split(self.window)]
        return torch.cat(pieces)


def topical_rows(documents, seed, *, made=0, features=256, width=64, length=512):
    """Documents of 512 rows, each on a twelfth of the directions."""
    directions = unit(features, width, torch.Generator().manual_seed(made))
    generator = torch.Generator().manual_seed(1000 + seed)
    topic = torch.rand(documents, features, generator=generator) < 1 / 12
    share = topic.repeat_interleave(length, 0) * (48 / features)
    fires = torch.rand(share.shape, generator=generator) < share
    return (fires * (0.5 + torch.rand(share.shape, generator=generator))) @ directions


def order(seed):
    rows, held_out = topical_rows(400, seed, made=seed), topical_rows(60, 77, made=seed)
    found = {}
    for name, window in (("none", 1), ("20 batches", 20 * 256), ("all", 10**9)):
        feed = InOrder(rows, 256, seed)
        object.__setattr__(feed, "window", window)
        book = trained("batch_topk", feed, latents=256, k=4, steps=800, batch_rows=256, seed=seed)
        result = scored(book, held_out)
        found[name] = (result.fvu, result.dead)
    return found


# -- crosscoders and skips --------------------------------------------------------------------------------


def shared_and_private(seed, *, width=48, each=24):
    """Relative norms of the matched latents of a crosscoder: of column A alone, of both, of column B alone."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (unit(2 * each, width, generator) for _ in range(2))
    fires = torch.rand(150_000, 3 * each, generator=generator) < 4 / (3 * each)
    size = fires * (0.5 + torch.rand(fires.shape, generator=generator))
    x = torch.cat([size[:, : 2 * each] @ a, size[:, each:] @ b], dim=1)
    widths = Widths((width, width), (width, width))
    book = trained(
        "crosscoder", ArrayFeed(x, BATCH, seed, columns=widths), latents=3 * each, k=4, seed=seed
    )
    truth = torch.zeros(3 * each, 2 * width)
    truth[: 2 * each, :width], truth[each:, width:] = a, b
    nearest = (normalize(truth, dim=1) @ normalize(book.W_dec_LD, dim=1).t()).argmax(1)
    left, right = (
        book.W_dec_LD[nearest][:, s].norm(dim=1) for s in (slice(width), slice(width, None))
    )
    relative = right / (left + right)
    return [relative[low : low + each] for low in (0, each, 2 * each)]


def skipped(seed, *, width=32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(150_000, width, generator=generator)
    a = torch.randn(width, width, generator=generator) / math.sqrt(width)
    read, write = unit(48, width, generator), unit(48, width, generator)
    sparse = torch.relu(x @ read.t() - 1.5) @ write * 2
    feed = ArrayFeed(x, BATCH, seed, y=x @ a + sparse)
    book = trained("skip_transcoder", feed, latents=96, k=4, seed=seed)
    plain = trained("transcoder", feed, latents=96, k=4, seed=seed)
    none = torch.zeros(20_000, dtype=torch.int64).numpy()
    fvu = [evaluate(one, [(x[:20_000], none, None, feed.y[:20_000])]).fvu for one in (book, plain)]
    return float((book.W_skip_DE - a).norm() / a.norm()), *fvu
