"""What is expected of members beside one another, on rows whose making is known: A3, A4, A6, A9.

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


SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


@SEEDS
def test_prefixes_keep_parents_whole(seed):
    """A3: Matryoshka tells parents by F1 .951, .981, .937, BatchTopK by .864, .883, .881.

    BatchTopK's parents are silent on a quarter of the rows with a child (recall .714, .747, .747; below .7 was expected),
    Matryoshka's on a twelfth; it leaves 17, 36 and 4 % more unexplained, where at most 10 % were expected.
    """
    found = hierarchy(seed)
    f1, recall, fvu = zip(found["batch_topk"], found["matryoshka"], strict=True)
    assert f1[1] > 0.89 > f1[0]
    assert recall[0] < 0.8 < recall[1]
    assert 1.0 < fvu[1] / fvu[0] < 1.7


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


@SEEDS
def test_rare_features_keep_latents_only_where_something_revives_them(seed):
    """A4: dead latents are a quarter without AuxK, .066, .094, .066 with it, .047, .051, .027 with MinFire's guarantees.

    That is three to four times fewer, not five, and not none with guarantees, which end with the last tenth of the run.
    """
    found = imbalance(seed)
    assert found["without"][0] > 0.2
    assert found["auxk"][0] < 0.12
    assert found["minfire"][0] < 0.08
    assert found["minfire"][1] < found["auxk"][1] < 0.75 * found["without"][1]


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


@SEEDS
def test_the_more_features_a_dimension_the_fewer_are_matched(seed):
    """A6: TopK .988, .974, .965 at two, four and eight features a dimension, BatchTopK .939, .816, .664.

    That TopK does no worse than BatchTopK here contradicts what is expected of hierarchical rows; these have none.
    """
    found = crowded(seed)
    for kind, least in (("topk", 0.95), ("batch_topk", 0.63)):
        values = [found[kind, times] for times in (2, 4, 8)]
        assert values[0] > values[2] > least
    assert found["topk", 8] > found["batch_topk", 8]


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


@SEEDS
def test_a_crosscoder_tells_which_column_a_latent_is_of(seed):
    """Relative norms within .05 of 0, ½ and 1 for private and shared directions; measured: within .012."""
    for relative, wanted in zip(shared_and_private(seed), (0.0, 0.5, 1.0), strict=True):
        assert float((relative - wanted).abs().max()) < 0.05


@SEEDS
def test_a_skip_takes_what_is_linear(seed):
    """The map within .1 of the true one (measured: .001), and the ReLU part by the latents; without a skip FVU is .35."""
    away, fvu, without = skipped(seed)
    assert away < 0.1
    assert fvu < 0.01 < 0.3 < without
