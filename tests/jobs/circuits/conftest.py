"""Toy facts and blocks: inputs for any statistic, made from what it requires."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ingest.contract import SequenceBlock
from ingest.models import AttentionSpec
from ingest.models.facts import ModelFacts

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_WIDTH, NEURONS = 2, 16, 4, 2, 4, 24
_SHAPES = {
    "resid_pre": (WIDTH,),
    "attn.q": (HEADS, HEAD_WIDTH),
    "attn.k": (KV_HEADS, HEAD_WIDTH),
    "attn.v": (KV_HEADS, HEAD_WIDTH),
    "attn.z": (HEADS, HEAD_WIDTH),
    "attn.out": (WIDTH,),
    "resid_mid": (WIDTH,),
    "mlp.in": (WIDTH,),
    "mlp.pre": (NEURONS,),
    "mlp.post": (NEURONS,),
    "mlp.out": (WIDTH,),
    "resid_post": (WIDTH,),
}
_numbers = itertools.count()


def make_facts(*, causal=True):
    spec = AttentionSpec(
        heads=HEADS, kv_heads=KV_HEADS, head_width=HEAD_WIDTH, scale=HEAD_WIDTH**-0.5, causal=causal
    )
    shapes = {f"blocks.{n}.{site}": s for n in range(LAYERS) for site, s in _SHAPES.items()}
    return ModelFacts(
        family="toy",
        layers=LAYERS,
        width=WIDTH,
        causal=causal,
        shapes={"embed": (WIDTH,), **shapes, "final.normalized": (WIDTH,)},
        attentions=(spec,) * LAYERS,
    )


def make_block(facts, sites, lengths, *, part=0, start=0, seed=0, dtype=torch.float32, vocab=12):
    """Sequences of these lengths from row ``start`` of a part on: random values, the second half of ids repeated."""
    rng = np.random.default_rng([seed, part, start])
    rows = int(sum(lengths))
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = part * 1024 + start + np.arange(rows)
    pos = np.concatenate([np.arange(n) for n in lengths])
    token_id = np.concatenate(
        [np.resize(rng.integers(0, vocab, max(1, -(-n // 2))), n) for n in lengths]
    )
    first = np.repeat(bounds[:-1], np.diff(bounds))
    tokens = {
        "row": ids,
        "token_id": token_id.astype(np.int32),
        "seq_id": ids[first],
        "doc_id": ids[first] // 7,
        "pos": pos.astype(np.int32),
        "char_start": pos.astype(np.int32),
        "char_end": (pos + 1).astype(np.int32),
        "split": np.zeros(rows, np.uint8),
        "flags": (4 * (pos == 0)).astype(np.uint16),
    }
    values = {
        site: torch.from_numpy(rng.normal(size=(rows, *facts.shape(site)))).to(dtype)
        for site in sites
    }
    return SequenceBlock(part=part, row_ids=ids, bounds=bounds, tokens=tokens, sites=values)


def make_blocks(facts, sites, *, parts=3, seed=0, dtype=torch.float32):
    """Part → its blocks: two of several sequences each, of lengths from 1 to 40."""
    found = {}
    for part in range(parts):
        rng = np.random.default_rng([seed, part, 77])
        blocks, start = [], 0
        for _ in range(2):
            lengths = [int(n) for n in rng.integers(1, 40, size=int(rng.integers(2, 5)))]
            blocks.append(
                make_block(facts, sites, lengths, part=part, start=start, seed=seed, dtype=dtype)
            )
            start += sum(lengths)
        found[part] = blocks
    return found


def cut_block(block, at):
    """The first ``at`` sequences of a block, and the rest."""
    middle = int(block.bounds[at])

    def piece(low, high, bounds):
        return SequenceBlock(
            part=block.part,
            row_ids=block.row_ids[low:high],
            bounds=bounds - bounds[0],
            tokens={name: values[low:high] for name, values in block.tokens.items()},
            sites={site: values[low:high] for site, values in block.sites.items()},
        )

    rows = len(block.row_ids)
    return piece(0, middle, block.bounds[: at + 1]), piece(middle, rows, block.bounds[at:])


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """What is synced when is the store's affair; no test pulls the plug."""
    monkeypatch.setattr("store.system.System.fdatasync", lambda self, fd: None)
    monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.fixture(scope="session")
def toy_facts():
    """The facts of a causal toy model of two layers with grouped heads."""
    return make_facts()


@pytest.fixture(scope="session")
def toy_block():
    """A function that makes a block: ``toy_block(facts, sites, lengths, part=, start=, seed=, dtype=)``."""
    return make_block


@pytest.fixture(scope="session")
def toy_blocks():
    """A function that makes part → blocks: ``toy_blocks(facts, sites, parts=, seed=, dtype=)``."""
    return make_blocks


@pytest.fixture(scope="session")
def cut():
    """A function that cuts a block behind its first n sequences."""
    return cut_block


@pytest.fixture
def fresh_url():
    """A store that lives as long as the process."""
    return f"memory://circuits-{next(_numbers)}"
