"""F1: an induction transformer whose every weight is written by hand, so that every answer is known.

Two layers of four heads, no norm, no MLP, no bias. The residual stream is ``tok | pos | prev | out | junk``.
L0H0 copies the token before into ``prev``; L1H0 looks for the key whose ``prev`` is the query's token and
copies the token there into ``out`` with gain 10 (induction); L1H1 has the same pattern but writes to ``junk``
(decoy); L1H2 copies the token before into ``out`` with gain 0.5 (echo). All other heads are noise that writes
to ``junk``. The unembedding reads ``out`` alone. `forward` is the plain NumPy form; `Compiled` is the same
weights as a torch module with named sites.
"""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from ingest.models import Anatomy, AttentionSpec, HookedModel, LoadedModel, Tap
from ingest.models.views import heads_of

VOCAB, LENGTH, LAYERS, HEADS, HEAD_WIDTH, JUNK = 16, 33, 2, 4, 33, 8
BOS, SYMBOLS = VOCAB, VOCAB + 1
TOK = slice(0, SYMBOLS)
POS = slice(SYMBOLS, SYMBOLS + LENGTH)
PREV = slice(POS.stop, POS.stop + SYMBOLS)
OUT = slice(PREV.stop, PREV.stop + SYMBOLS)
RUBBISH = slice(OUT.stop, OUT.stop + JUNK)
WIDTH = RUBBISH.stop
MATCH_SCORE = 20.0
GAIN, ECHO_GAIN = 10.0, 0.5
PREVIOUS, INDUCTION, DECOY, ECHO = (0, 0), (1, 0), (1, 1), (1, 2)
SHARPNESS = math.sqrt(MATCH_SCORE * math.sqrt(HEAD_WIDTH))


def weights(seed=0):
    """Return float64 ``q, k, v [L, H, d, dh]``, ``o [L, H, dh, d]``, ``embed``, ``positions``, ``unembed``."""
    rng = np.random.default_rng(seed)
    shape = (LAYERS, HEADS, WIDTH, HEAD_WIDTH)
    q, k, v = (1e-2 * rng.standard_normal(shape) for _ in range(3))
    o = np.zeros((LAYERS, HEADS, HEAD_WIDTH, WIDTH))
    o[..., RUBBISH] = 1e-2 * rng.standard_normal((*o.shape[:-1], JUNK))
    for head in (PREVIOUS, INDUCTION, DECOY, ECHO):
        for matrix in (q, k, v, o):
            matrix[head] = 0
    symbols, places = np.eye(SYMBOLS, HEAD_WIDTH), np.eye(LENGTH, HEAD_WIDTH)
    for head in (PREVIOUS, ECHO):
        q[head][POS] = SHARPNESS * places
        k[head][POS] = SHARPNESS * np.eye(LENGTH, HEAD_WIDTH, k=1)
    for head in (INDUCTION, DECOY):
        q[head][TOK] = SHARPNESS * symbols
        k[head][PREV] = SHARPNESS * symbols
    for head in (PREVIOUS, INDUCTION, DECOY, ECHO):
        v[head][TOK] = symbols
    o[PREVIOUS][:, PREV] = symbols.T
    o[INDUCTION][:, OUT] = GAIN * symbols.T
    o[DECOY][:SYMBOLS, RUBBISH] = GAIN * np.eye(SYMBOLS, JUNK)
    o[ECHO][:, OUT] = ECHO_GAIN * symbols.T
    embed, positions = np.zeros((SYMBOLS, WIDTH)), np.zeros((LENGTH, WIDTH))
    embed[:, TOK], positions[:, POS] = np.eye(SYMBOLS), np.eye(LENGTH)
    unembed = np.zeros((WIDTH, SYMBOLS))
    unembed[OUT] = np.eye(SYMBOLS)
    return SimpleNamespace(q=q, k=k, v=v, o=o, embed=embed, positions=positions, unembed=unembed)


def repeated(rng, period, count=1):
    """Return ``int64[count, 1 + 2 * period]``: BOS, then a block of distinct tokens twice."""
    blocks = np.stack([rng.permutation(VOCAB)[:period] for _ in range(count)])
    return np.concatenate([np.full((count, 1), BOS), blocks, blocks], axis=1)


def pair_c1(rng, period=8):
    """Return clean and corrupt ids and j0: the last token's earlier occurrence becomes an unused token."""
    clean = repeated(rng, period)[0]
    corrupt = clean.copy()
    corrupt[period] = next(t for t in range(VOCAB) if t not in clean)
    return clean, corrupt, period


def softmax(scores):
    """Softmax over the last axis."""
    weights_ = np.exp(scores - scores.max(-1, keepdims=True))
    return weights_ / weights_.sum(-1, keepdims=True)


def forward(w, ids, patches=()):
    """Run the plain form; ``patches`` holds ``((layer, head, position), z)``.

    Returns
    -------
    logits ``[T, V + 1]``, patterns ``[L, H, T, T]`` and z ``[L, H, T, dh]``, float64.
    """
    x = w.embed[ids] + w.positions[: len(ids)]
    hidden = np.triu(np.full((len(ids), len(ids)), -np.inf), k=1)
    patterns, zs = [], []
    for layer in range(LAYERS):
        q, k, v = (np.einsum("td,hde->hte", x, m[layer]) for m in (w.q, w.k, w.v))
        pattern = softmax(np.einsum("hte,hse->hts", q, k) / math.sqrt(HEAD_WIDTH) + hidden)
        z = pattern @ v
        for (place, head, position), value in patches:
            if place == layer:
                z[head, position] = value
        x = x + np.einsum("hte,hed->td", z, w.o[layer])
        patterns.append(pattern)
        zs.append(z)
    return SimpleNamespace(logits=x @ w.unembed, patterns=np.stack(patterns), z=np.stack(zs))


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        wide = HEADS * HEAD_WIDTH
        self.q, self.k, self.v = (nn.Linear(WIDTH, wide, bias=False) for _ in range(3))
        self.o = nn.Linear(wide, WIDTH, bias=False)

    def forward(self, x):
        q, k, v = (
            m(x).view(*x.shape[:-1], HEADS, HEAD_WIDTH).transpose(1, 2)
            for m in (self.q, self.k, self.v)
        )
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(z.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = _Attention()

    def forward(self, x):
        return x + self.attn(x)


class Compiled(nn.Module):
    """F1 as a torch module in the manner of Hugging Face: ``model(input_ids=…).logits``."""

    def __init__(self, w, *, head=True):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=SYMBOLS)
        self.embed = nn.Embedding(SYMBOLS, WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(LAYERS))
        self.unembed = nn.Linear(WIDTH, SYMBOLS, bias=False) if head else None
        self.register_buffer("positions", torch.from_numpy(w.positions))
        self.double().requires_grad_(False)
        self.embed.weight.copy_(torch.from_numpy(w.embed))
        if head:
            self.unembed.weight.copy_(torch.from_numpy(w.unembed.T))
        for layer, block in enumerate(self.blocks):
            for name in "qkv":
                joined = getattr(w, name)[layer].transpose(0, 2, 1).reshape(-1, WIDTH)
                getattr(block.attn, name).weight.copy_(torch.from_numpy(joined))
            block.attn.o.weight.copy_(torch.from_numpy(w.o[layer].reshape(-1, WIDTH).T))
        self.eval()

    def get_output_embeddings(self):
        return self.unembed

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        x = self.embed(input_ids) + self.positions[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return SimpleNamespace(logits=None if self.unembed is None else self.unembed(x))


def anatomy():
    """Return where the sites of `Compiled` lie."""
    block, shape, width = "blocks.{l}", (HEADS, HEAD_WIDTH), (WIDTH,)
    spec = AttentionSpec(
        heads=HEADS, kv_heads=HEADS, head_width=HEAD_WIDTH, scale=HEAD_WIDTH**-0.5, causal=True
    )
    return Anatomy(
        layers=LAYERS,
        width=WIDTH,
        causal=True,
        max_positions=LENGTH,
        attention=lambda _: spec,
        before={"embed": Tap("embed", "out", width)},
        block={
            "resid_pre": Tap(block, "in", width),
            "attn.q": Tap(f"{block}.attn.q", "out", shape, heads_of(*shape)),
            "attn.k": Tap(f"{block}.attn.k", "out", shape, heads_of(*shape)),
            "attn.v": Tap(f"{block}.attn.v", "out", shape, heads_of(*shape)),
            "attn.z": Tap(f"{block}.attn.o", "in", shape, heads_of(*shape)),
            "attn.out": Tap(f"{block}.attn.o", "out", width),
            "resid_post": Tap(block, "out", width),
        },
    )


def loaded(seed=0, *, head=True):
    """Return F1 as everything of ours takes a model; ``head=False`` leaves out the unembedding."""
    model = Compiled(weights(seed), head=head)
    return LoadedModel(
        adapter=HookedModel(model, "compiled", anatomy()),
        tokenizer=SimpleNamespace(bos_token_id=BOS, all_special_ids=[BOS]),
        model=model,
        name="F1",
        folder=Path(),
        config_sha256="",
        files={},
        compute_dtype="float64",
        attn_implementation="sdpa",
        revision=None,
    )
