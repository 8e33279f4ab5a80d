"""The machine behind every family: laws over the registry, the stop, the clean-up, edits."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from ingest.errors import ModelError, SiteError
from ingest.models import (
    ADAPTERS,
    Anatomy,
    HookedModel,
    Tap,
    adapt,
    attend,
    attention_sites,
    rotate,
    toy,
)

FAMILIES = toy.reading()


def batch(size=2, length=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 200, (size, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return ids, mask


@pytest.fixture(params=FAMILIES)
def model(request):
    return toy.build(request.param, layers=2)


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def inside(adapter, layer):
    """Return the sites of a block that are not its stream."""
    names = [site for site in adapter.sites() if site.startswith(f"blocks.{layer}.")]
    return [site for site in names if "resid" not in site]


def attends(model):
    return "blocks.0.attn.q" in adapt(model).sites()


def running(model):
    """Return a list that grows by the path of every module that finishes its forward."""
    ran = []
    for path, module in model.base_model.named_modules():
        module.register_forward_hook(lambda *_, path=path: ran.append(path))
    return ran


def test_values_have_the_declared_shape_and_the_dtype_of_compute(model):
    adapter = adapt(model.to(torch.bfloat16))
    ids, mask = batch()
    wide = getattr(model.config, "residual_in_fp32", False)  # of Mamba, what its blocks put out
    for site, value in adapter.capture(ids, mask, list(adapter.sites())).items():
        info = adapter.sites()[site]
        assert value.shape == (*ids.shape, *info.shape)
        if info.dtype:
            assert not value.is_floating_point()
            assert value.max() <= torch.iinfo(getattr(torch, info.dtype)).max
        else:
            stream = ("blocks.0.resid_post", "blocks.1.resid_pre", "blocks.1.resid_post")
            kept = wide and site in (*stream, "final.normalized")
            assert value.dtype == (torch.float32 if kept else torch.bfloat16)
        assert not value.requires_grad


def test_equal_batches_give_equal_bits(model):
    adapter = adapt(model)
    sites = list(adapter.sites())
    one, two = (adapter.capture(*batch(), sites) for _ in range(2))
    alone = {site: adapter.capture(*batch(), [site])[site] for site in sites}
    for site in sites:
        assert torch.equal(one[site], two[site])
        assert torch.equal(one[site], alone[site])


def test_depth_orders_sites_as_the_forward_reaches_them(model):
    adapter = adapt(model)
    infos = adapter.sites()
    reached = []
    handles = [adapter.listen(site, lambda _, site=site: reached.append(site)) for site in infos]
    ids, mask = batch()
    model(input_ids=ids, attention_mask=mask)
    for handle in handles:
        handle.remove()
    assert sorted(reached, key=lambda site: infos[site].depth) == reached
    assert [info.depth for info in infos.values()] == list(range(len(infos)))
    assert set(reached) == set(infos)


def test_the_forward_stops_at_the_deepest_site(model):
    adapter, ran = adapt(model), running(model)
    ids, mask = batch()
    model(input_ids=ids, attention_mask=mask)
    whole = list(ran)
    for site in adapter.sites():
        ran.clear()
        adapter.capture(ids, mask, [site, "embed"])
        tap = adapter._taps[site]
        inside = [n for n, path in enumerate(whole) if f"{path}.".startswith(f"{tap.module}.")]
        # An output ends the forward when its module has finished, an input before it begins, and what
        # attention sees before the module behind it (the output projection, then the module itself).
        ends = {
            "in": inside[0],
            "out": inside[-1] + 1,
            "query": inside[-2:][0],
            "key": inside[-2:][0],
        }
        assert ran == whole[: ends[tap.end]], site


def test_the_last_block_does_not_run_for_a_site_of_the_first(model):
    adapter, ran = adapt(model), running(model)
    adapter.capture(*batch(), [inside(adapter, 0)[1]])
    last = adapter._taps["blocks.1.resid_post"].module
    assert not [path for path in ran if path.startswith(last)]
    adapter.capture(*batch(), [inside(adapter, 1)[1]])
    assert [path for path in ran if path.startswith(last)]


def test_hooks_are_gone_after_a_capture_and_after_every_error(model):
    adapter, before = adapt(model), hooks_on(model)
    ids, mask = batch()
    adapter.capture(ids, mask, [inside(adapter, 0)[0], "blocks.1.resid_post"])
    assert hooks_on(model) == before
    with pytest.raises(SiteError):
        adapter.capture(ids, mask, ["embed", "blocks.7.attn.q"])
    assert hooks_on(model) == before

    def explode(*_):
        raise RuntimeError("inside the model")

    bomb = adapter.base.get_submodule(adapter._taps[inside(adapter, 1)[2]].module)
    handle = bomb.register_forward_hook(explode)
    with pytest.raises(RuntimeError, match="inside the model"):
        adapter.capture(ids, mask, ["embed", "blocks.1.resid_post"])
    handle.remove()
    assert hooks_on(model) == before
    assert adapter.capture(ids, mask, ["blocks.1.resid_post"])


def test_nothing_is_copied_and_nothing_is_kept(model):
    adapter = adapt(model)
    ids, mask = batch()
    got = adapter.capture(ids, mask, ["blocks.0.resid_post", "blocks.1.resid_pre"])
    one, two = got.values()
    assert one.data_ptr() == two.data_ptr()
    ref = weakref.ref(one)
    del got, one, two
    gc.collect()
    assert ref() is None


def test_every_view_is_a_view(model):
    adapter = adapt(model)
    for site, tap in adapter._taps.items():
        seen = []
        module = adapter.base.get_submodule(tap.module)
        if tap.end not in {"in", "out"}:
            continue  # no hook of torch's sees what attention sees: test_model_llama.py does
        hook = (
            module.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
            if tap.end == "out"
            else module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        )
        value = adapter.capture(*batch(), [site])[site]
        hook.remove()
        if seen:
            own = seen[0][tap.item] if isinstance(seen[0], tuple) else seen[0]
            assert value.untyped_storage().data_ptr() == own.untyped_storage().data_ptr(), site


def test_a_listener_may_replace_a_value_and_gradients_flow_through(model):
    adapter = adapt(model)
    ids, mask = batch()
    for site, info in adapter.sites().items():
        if not info.differentiable:
            continue  # test_model_olmoe.py
        scale = torch.ones((), requires_grad=True)
        after = []
        with (
            adapter.listen(site, lambda value, scale=scale: value * scale),
            adapter.listen(site, lambda value, after=after: after.append(value)),
        ):
            edited = adapter.base(input_ids=ids, attention_mask=mask).last_hidden_state
        plain = adapter.base(input_ids=ids, attention_mask=mask).last_hidden_state
        assert torch.equal(edited, plain), site
        (gradient,) = torch.autograd.grad(edited[0].square().sum() + after[0].sum(), scale)
        assert gradient != 0, site
        with adapter.listen(site, torch.zeros_like):
            zeroed = adapter.base(input_ids=ids, attention_mask=mask).last_hidden_state
        assert not torch.equal(zeroed, plain), site


def test_an_edit_of_another_shape_or_of_fractions_in_whole_numbers_is_refused():
    ids, mask = batch()
    for family, site, edit in (
        ("opt", "blocks.0.mlp.post", lambda value: value[:1]),
        ("llama", "blocks.0.attn.z", lambda value: value.flatten(2)),
        ("olmoe", "blocks.0.router.topk", lambda value: value * 0.4),
    ):
        model = toy.build(family, layers=1)
        adapter = adapt(model)
        with adapter.listen(site, edit), pytest.raises(SiteError, match="bad-edit"):
            model(input_ids=ids, attention_mask=mask)
        model(input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_attention_recomputed_from_the_sites_it_sees_is_z(model, how):
    if model._supports_sdpa:
        model.set_attn_implementation(how)
    adapter, (ids, mask) = adapt(model), batch(length=27)
    if not attends(model):
        with pytest.raises(ModelError, match="no-attention"):
            attention_sites(adapter, 0)
        return
    for layer in range(adapter.layers):
        spec, names = adapter.attention(layer), attention_sites(adapter, layer)
        q, k, v, z = adapter.capture(ids, mask, names).values()
        assert adapter.sites()[names[0]].shape == (spec.heads, spec.head_width)
        assert adapter.sites()[names[1]].shape == (spec.kv_heads, spec.head_width)
        again, _ = attend(q, k, v, spec, mask, block=8)
        real = mask.bool()
        assert (again - z)[real].norm() <= 1e-5 * z[real].norm()
        if spec.rotary is None:
            continue
        places = torch.arange(ids.shape[1]).expand_as(ids)
        block = f"blocks.{layer}.attn"
        before = adapter.capture(ids, mask, [f"{block}.q", f"{block}.k"]).values()
        for mine, theirs in zip(before, (q, k), strict=True):
            turned = rotate(mine, places, spec.rotary)
            torch.testing.assert_close(turned, theirs, atol=5e-5, rtol=5e-5)


def test_an_edit_of_one_head_site_leaves_its_neighbours_alone(model):
    adapter = adapt(model)
    names = [f"blocks.0.attn.{part}" for part in "qkv"]
    if not attends(model):
        names = [f"blocks.0.mixer.{part}" for part in ("b", "c", "dt")]
    plain = adapter.capture(*batch(), names)
    with adapter.listen(names[1], lambda k: k + 1):
        edited = adapter.capture(*batch(), names)
    assert torch.equal(edited[names[0]], plain[names[0]])
    assert torch.equal(edited[names[1]], plain[names[1]] + 1)
    assert torch.equal(edited[names[2]], plain[names[2]])


def test_no_sites_no_forward(model):
    ran = running(model)
    assert adapt(model).capture(*batch(), []) == {}
    assert ran == []


def test_sites_come_back_once_and_in_the_order_asked(model):
    last = inside(adapt(model), 1)[-1]
    assert list(adapt(model).capture(*batch(), [last, "embed", last])) == [last, "embed"]


@pytest.mark.parametrize(
    ("ids", "mask", "kind"),
    [
        (torch.ones(3, dtype=torch.long), torch.ones(3, dtype=torch.long), "bad-input"),
        (torch.ones(2, 3), torch.ones(2, 3), "bad-input"),
        (torch.ones(2, 3, dtype=torch.long), torch.ones(2, 4), "bad-input"),
        (torch.ones(2, 0, dtype=torch.long), torch.ones(2, 0), "bad-input"),
        (torch.full((1, 3), 9999), torch.ones(1, 3), "bad-input"),
        (torch.full((1, 3), -1), torch.ones(1, 3), "bad-input"),
        (torch.ones(1, 65, dtype=torch.long), torch.ones(1, 65), "too-long"),
    ],
    ids=["one axis", "floats", "mask shape", "empty", "id too large", "negative", "too long"],
)
def test_bad_batches_are_refused_before_anything_runs(model, ids, mask, kind):
    ran = running(model)
    if kind == "too-long" and adapt(model).max_positions is None:
        assert adapt(model).capture(ids, mask, ["embed"])["embed"].shape[:2] == ids.shape
        return
    with pytest.raises(ModelError) as caught:
        adapt(model).capture(ids, mask, ["embed"])
    assert caught.value.kind == kind
    assert "Nothing was run" in str(caught.value)
    assert ran == []


def test_a_model_in_training_mode_is_refused(model):
    with pytest.raises(ModelError, match="training-mode"):
        adapt(model.train()).capture(*batch(), ["embed"])


def test_a_block_that_is_not_there_is_refused(model):
    with pytest.raises(SiteError, match="blocks 0 to 1"):
        adapt(model).attention(2)


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ModelError, match=f"Linear.*{', '.join(ADAPTERS.names())}") as caught:
        adapt(nn.Linear(2, 2))
    assert caught.value.kind == "unsupported-family"


class Loop(nn.Module):
    """A model that passes its one site as often as it is told, and takes no positional input."""

    def __init__(self, times):
        super().__init__()
        self.inner = nn.Embedding(8, 4)
        self.norm = Named()
        self.last = nn.Identity()
        self.times = times

    def forward(self, input_ids, attention_mask, use_cache):
        out = torch.zeros(1, 2, 4)
        for _ in range(self.times):
            out = self.norm(hidden_states=self.inner(input_ids))[0]
        return self.last(out)


class Named(nn.Module):
    def forward(self, hidden_states):
        return hidden_states * 2, "weights"


def looped(times, shape=(4,)):
    return HookedModel(
        Loop(times).eval(),
        "loop",
        Anatomy(
            layers=0,
            width=4,
            causal=False,
            max_positions=None,
            attention=lambda _: pytest.fail("has none"),
            block={},
            before={
                "embed": Tap("inner", "out", shape),
                "in": Tap("norm", "in", (4,)),
                "out": Tap("norm", "out", (4,)),
                "end": Tap("last", "out", (4,)),
            },
        ),
    )


def test_inputs_by_keyword_and_outputs_in_tuples_are_sites_too():
    adapter = looped(1)
    ids = torch.tensor([[1, 2]])
    got = adapter.capture(ids, torch.ones_like(ids), ["in", "out"])
    assert torch.equal(got["out"], got["in"] * 2)
    with adapter.listen("in", lambda x: x + 1), adapter.listen("out", lambda x: x - 1):
        edited = adapter.model(ids, None, use_cache=False)
    assert torch.equal(edited, (got["in"] + 1) * 2 - 1)


@pytest.mark.parametrize(
    ("adapter", "found"),
    [
        (looped(2), "passed it twice"),
        (looped(0), "never reached it"),
        (looped(1, shape=(5,)), "shape"),
    ],
    ids=["twice", "never", "shape"],
)
def test_a_model_laid_out_otherwise_is_an_error_not_a_wrong_value(adapter, found):
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ModelError, match=f"site-broken.*{found}"):
        adapter.capture(ids, torch.ones_like(ids), ["embed", "end"])
    assert hooks_on(adapter.model) == 0


def test_a_site_that_comes_in_pieces_is_refused():
    model = toy.build("bert")
    adapter = adapt(model)
    for layer in model.encoder.layer:
        layer.chunk_size_feed_forward = 3
    ids, mask = batch(length=9)
    with pytest.raises(ModelError, match="site-broken"):
        adapter.capture(ids, mask, ["blocks.0.mlp.pre"])
