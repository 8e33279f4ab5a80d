"""Latents of attention outputs split over heads and source tokens, on models whose attention is known (E10)."""

from __future__ import annotations

import pytest
import torch

from ingest.models import adapt, attention_sites, scores, toy
from jobs.codebook import Codebook
from jobs.dictionaries.heads import by_head, by_source, decoder_shares, heads_table
from jobs.errors import JobError

LATENTS = 20


def book(width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.nn.functional.normalize(torch.randn(LATENTS, width, generator=generator), dim=1)
    return Codebook(
        torch.randn(width, LATENTS, generator=generator),
        torch.randn(LATENTS, generator=generator),
        decoder,
        torch.zeros(width),
        0.0,
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_heads_and_sources_add_up_to_the_pre_activation(family):
    """Llama's toy has fewer values than heads: each is taken for several."""
    adapter = adapt(toy.build(family))
    ids = torch.randint(5, 100, (1, 12), generator=torch.Generator().manual_seed(1))
    sites = attention_sites(adapter, 1)
    q, k, v, z = (adapter.capture(ids, torch.ones_like(ids), sites)[site].float() for site in sites)
    pattern = torch.softmax(scores(q, k, adapter.attention(1)), dim=-1)[0]
    v, z = v[0], z[0]
    dictionary = book(z.flatten(1).shape[1])
    pre = z.flatten(1) @ dictionary.W_enc_DL + dictionary.b_enc_L
    for latent in (0, 7, LATENTS - 1):
        expected = pre[:, latent] - dictionary.b_enc_L[latent]
        torch.testing.assert_close(
            by_head(dictionary, z, latent).sum(1), expected, rtol=1e-4, atol=1e-4
        )
        sources = by_source(dictionary, pattern, v, latent)
        torch.testing.assert_close(sources.sum(1), expected, rtol=1e-4, atol=1e-4)
        assert float(sources.triu(1).abs().max()) == 0  # nothing comes from later tokens


def test_a_latent_of_one_head_is_attributed_to_it():
    decoder = torch.zeros(4, 4, 8)
    for head in range(4):
        decoder[head, head] = torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0)
    flat = decoder.flatten(1)
    dictionary = Codebook(flat.t(), torch.zeros(4), flat, torch.zeros(32), 0.0)
    torch.testing.assert_close(decoder_shares(dictionary, 4), torch.eye(4))
    table = heads_table(dictionary, 4)
    assert table["share"].reshape(4, 4).trace() == 4
    mixed = decoder_shares(book(32), 4)
    torch.testing.assert_close(mixed.sum(1), torch.ones(LATENTS))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(JobError, match=r"width-mismatch.*5 heads"):
        decoder_shares(book(32), 5)
