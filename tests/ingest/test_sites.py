"""Site names: sets, shares, wildcards, other projects' names, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import SiteError
from ingest.models import SiteInfo, adapt, resolve_sites, toy
from ingest.models.sites import compact

BLOCK = "resid_pre attn.q attn.k attn.v attn.z attn.out resid_mid mlp.in mlp.pre mlp.post mlp.out"
BLOCK = [*BLOCK.split(), "resid_post"]


class Names:
    """A model that is nothing but names."""

    family = "paper"

    def __init__(self, layers):
        names = ["embed", *(f"blocks.{layer}.{part}" for layer in range(layers) for part in BLOCK)]
        self._sites = {name: SiteInfo(name, (1,), depth) for depth, name in enumerate(names)}

    def sites(self):
        return self._sites

    def aliases(self):
        return {}


SIX = Names(6)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["blocks.3.resid_post"], ["blocks.3.resid_post"]),
        (
            ["blocks.{3,5}.resid_post"],
            ["blocks.3.resid_post", "blocks.5.resid_post"],
        ),
        (
            ["blocks.{0..2}.attn.z"],
            ["blocks.0.attn.z", "blocks.1.attn.z", "blocks.2.attn.z"],
        ),
        (
            ["blocks.{0,4..5}.attn.{k,q}"],
            [f"blocks.{layer}.attn.{part}" for layer in (0, 4, 5) for part in "qk"],
        ),
        (["blocks.*.attn.z"], [f"blocks.{layer}.attn.z" for layer in range(6)]),
        (["blocks.1.attn.*"], [f"blocks.1.attn.{part}" for part in ("q", "k", "v", "z", "out")]),
        (["@50%"], ["blocks.3.resid_post"]),
        (["@0%", "@100%"], ["blocks.0.resid_post", "blocks.5.resid_post"]),
        (["@33.4%"], ["blocks.2.resid_post"]),
        (["@{25,75}%"], ["blocks.1.resid_post", "blocks.4.resid_post"]),
        (["blocks.@50%.attn.{q,k}"], ["blocks.3.attn.q", "blocks.3.attn.k"]),
        (["blocks.5.mlp.in", "embed", "embed"], ["embed", "blocks.5.mlp.in"]),
        ([" embed "], ["embed"]),
        ("embed", ["embed"]),
        ([], []),
    ],
)
def test_patterns_become_names_in_order_of_depth(patterns, expected):
    assert resolve_sites(patterns, SIX) == expected


def test_a_share_is_rounded_down():
    assert resolve_sites(["@50%"], Names(7)) == ["blocks.3.resid_post"]
    assert resolve_sites(["@50%"], Names(1)) == ["blocks.0.resid_post"]


@given(layers=st.integers(1, 80), percent=st.integers(0, 100))
def test_a_share_is_a_block_of_the_model(layers, percent):
    (site,) = resolve_sites([f"@{percent}%"], Names(layers))
    assert site == f"blocks.{min(layers - 1, layers * percent // 100)}.resid_post"


@pytest.mark.parametrize(
    ("lens", "ours"),
    [
        ("hook_embed", "embed"),
        ("blocks.3.hook_resid_pre", "blocks.3.resid_pre"),
        ("blocks.3.hook_resid_mid", "blocks.3.resid_mid"),
        ("blocks.3.hook_resid_post", "blocks.3.resid_post"),
        ("blocks.3.hook_normalized_resid_post", "blocks.3.resid_post"),
        ("blocks.3.attn.hook_q", "blocks.3.attn.q"),
        ("blocks.3.attn.hook_k", "blocks.3.attn.k"),
        ("blocks.3.attn.hook_v", "blocks.3.attn.v"),
        ("blocks.3.attn.hook_z", "blocks.3.attn.z"),
        ("blocks.3.hook_attn_out", "blocks.3.attn.out"),
        ("blocks.3.hook_mlp_in", "blocks.3.resid_mid"),
        ("blocks.3.mlp.hook_pre", "blocks.3.mlp.pre"),
        ("blocks.3.mlp.hook_post", "blocks.3.mlp.post"),
        ("blocks.3.hook_mlp_out", "blocks.3.mlp.out"),
    ],
)
def test_names_of_transformer_lens(lens, ours):
    assert resolve_sites([lens], SIX) == [ours]


def test_sets_and_wildcards_work_in_other_projects_names():
    assert resolve_sites(["blocks.{0,2}.hook_attn_out", "blocks.*.attn.hook_z"], Names(3)) == [
        "blocks.0.attn.z",
        "blocks.0.attn.out",
        "blocks.1.attn.z",
        "blocks.2.attn.z",
        "blocks.2.attn.out",
    ]


@pytest.mark.parametrize(
    ("family", "module", "ours"),
    [
        ("bert", "bert.encoder.layer.1", ["blocks.1.resid_post"]),
        ("bert", "encoder.layer.1.output", ["blocks.1.resid_post"]),
        ("bert", "encoder.layer.1.attention.self.query", ["blocks.1.attn.q"]),
        ("bert", "encoder.layer.1.attention.output.dense", ["blocks.1.attn.out"]),
        ("bert", "encoder.layer.1.attention.output", ["blocks.1.resid_mid"]),
        ("bert", "encoder.layer.1.output.dense", ["blocks.1.mlp.out"]),
        ("bert", "embeddings.word_embeddings", ["embed"]),
        ("gpt2", "transformer.h.{0,1}", ["blocks.0.resid_post", "blocks.1.resid_post"]),
        ("gpt2", "h.1.attn", ["blocks.1.attn.out"]),
        ("gpt2", "h.1.attn.c_attn", [f"blocks.1.attn.{part}" for part in "qkv"]),
        ("gpt2", "h.1.mlp", ["blocks.1.mlp.out"]),
        ("gpt2", "transformer.h.1.mlp.c_fc", ["blocks.1.mlp.pre"]),
        ("gpt2", "transformer.wte", ["embed"]),
        ("gpt2", "ln_f", ["final.normalized"]),
        ("gpt2", "ln_final.hook_normalized", ["final.normalized"]),
        ("llama", "model.layers.{0,1}", ["blocks.0.resid_post", "blocks.1.resid_post"]),
        ("llama", "layers.1.self_attn.k_proj", ["blocks.1.attn.k"]),
        ("llama", "layers.1.self_attn", ["blocks.1.attn.out"]),
        ("llama", "model.layers.1.mlp.up_proj", ["blocks.1.mlp.pre_linear"]),
        ("llama", "blocks.1.attn.hook_rot_{q,k}", ["blocks.1.attn.rot_q", "blocks.1.attn.rot_k"]),
        ("llama", "blocks.1.mlp.hook_pre_linear", ["blocks.1.mlp.pre_linear"]),
        ("llama", "norm", ["final.normalized"]),
    ],
)
def test_names_of_hugging_face_modules(family, module, ours):
    assert resolve_sites([module], adapt(toy.build(family))) == ours


@pytest.mark.parametrize("family", toy.reading())
def test_a_module_name_gives_that_modules_output(family):
    import torch

    model = toy.build(family)
    adapter = adapt(model)
    ids = torch.ones(1, 5, dtype=torch.long)
    mask = torch.ones_like(ids)
    for path, sites in adapter.aliases().items():
        if len(sites) > 1 or path.startswith(adapter._prefix + "."):
            continue
        seen = []
        hook = model.base_model.get_submodule(path).register_forward_hook(
            lambda _, __, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.inference_mode():
            model.base_model(input_ids=ids, attention_mask=mask)
        hook.remove()
        value = adapter.capture(ids, mask, sites)[sites[0]]
        mine, own = (
            part.flatten().sort().values for part in (value, seen[0])
        )  # heads may come first
        assert torch.equal(mine, own), path


@pytest.mark.parametrize(
    "pattern",
    [
        "blocks.6.resid_post",
        "blocks.{3,9}.resid_post",
        "blocks.{3..9}.resid_post",
        "blocks.3.resid",
        "blocks.x.resid_post",
        "layer.*",
        "@101%",
        "@-1%",
        "@50",
        "",
        "{",
        "{}",
        "blocks.{0..99999999999}.resid_post",
        "{0..999}{0..999}{0..999}",
        "blocks.3.attn.scores",
        "[b]locks.3.attn.q",
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(pattern):
    with pytest.raises(SiteError) as caught:
        resolve_sites(["embed", pattern], SIX)
    assert caught.value.kind == "unknown-site"
    message = str(caught.value)
    assert repr(pattern) in message
    assert "blocks.{0..5}.resid_post" in message
    assert "Nothing was run" in message
    assert len(message) < 1200


def test_every_listed_name_is_understood():
    listed = compact(SIX.sites())
    assert len(listed) == 1 + len(BLOCK)
    assert resolve_sites(listed, SIX) == list(SIX.sites())


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["embed"], ["embed"]),
        (["blocks.0.x"], ["blocks.0.x"]),
        (["blocks.0.x", "blocks.1.x", "blocks.3.x"], ["blocks.{0..1,3}.x"]),
        (["blocks.0.x", "blocks.2.x"], ["blocks.{0,2}.x"]),
        ([], []),
    ],
)
def test_names_are_gathered(names, listed):
    assert compact(names) == listed
