"""Values and gradients of the pieces against a plain dense dictionary in float64."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch

from jobs.codes import Pattern, PlainCodeOps
from jobs.dictionaries.contract import VARIANTS
from jobs.dictionaries.decoder import decode
from jobs.dictionaries.encoders.linear import pre_activations
from jobs.dictionaries.losses.auxk import auxk
from jobs.dictionaries.losses.nmse import nmse

WIDTH, LATENTS, K, ROWS = 10, 48, 4, 24
_SPEC = importlib.util.spec_from_file_location(
    "oracle_dictionaries", Path(__file__).parents[2] / "oracles" / "dictionaries.py"
)
_ORACLE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_ORACLE)
dense_objective = _ORACLE.dense_objective


def dictionary_of(name, *, dtype=torch.float64, width=WIDTH, seed=0):
    built = VARIANTS.get(name)(latents=LATENTS, k=K).build(width, seed=seed).to(dtype)
    built.name = name
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in built.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise.to(dtype))
    return built


def rows_of(rows=ROWS, width=WIDTH, seed=5, dtype=torch.float64):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(dictionary, x, dead=(), variance=1.7):
    """One forward; targets and gradients are other rows, where the variant takes any."""
    needs = VARIANTS.get(dictionary.name).needs
    y = rows_of(seed=6, dtype=x.dtype)[: len(x)] if "target" in needs else None
    g = rows_of(seed=7, dtype=x.dtype)[: len(x)] if "gradient" in needs else None
    gone = torch.as_tensor(dead, dtype=torch.int64)
    return dictionary(x, y, g, variance=variance, dead=gone)


def gradients(dictionary, loss):
    return dict(
        zip(
            [name for name, _ in dictionary.named_parameters()],
            torch.autograd.grad(loss, list(dictionary.parameters()), materialize_grads=True),
            strict=True,
        )
    )


DEAD = {"none dead": 0, "few dead": 3, "more dead than k_aux": 20}


@pytest.mark.parametrize("dead", DEAD.values(), ids=list(DEAD))
@pytest.mark.parametrize("name", VARIANTS.names())
def test_loss_and_gradients_are_those_of_the_dense_float64_form(name, dead):
    dictionary, x = dictionary_of(name), rows_of()
    gone = torch.arange(dead) * 2
    forward = run(dictionary, x, gone)
    dense = dense_objective(dictionary, forward)
    loss = dictionary.loss(forward)
    assert torch.allclose(loss, dense, rtol=1e-12)
    ours, theirs = gradients(dictionary, loss), gradients(dictionary, dense)
    for parameter in ours:
        assert torch.allclose(ours[parameter], theirs[parameter], rtol=1e-9, atol=1e-11), parameter


@pytest.mark.parametrize("name", VARIANTS.names())
def test_float32_gradients_err_no_more_than_the_dense_float32_form(name):
    """Float64 is the truth; the sparse form sums in another order, so it gets a small allowance."""
    exact, single = dictionary_of(name), dictionary_of(name, dtype=torch.float32)
    single.load_state_dict({key: value.float() for key, value in exact.state_dict().items()})
    x, gone = rows_of(), torch.arange(5)
    forward = run(single, x.float(), gone)
    as_exact = dataclasses.replace(
        forward, x=forward.x.double(), y=forward.y.double(), dictionary=exact
    )
    truth = gradients(exact, dense_objective(exact, as_exact))
    dense = gradients(single, dense_objective(single, forward))
    ours = gradients(single, single.loss(forward))
    for parameter in truth:
        scale = truth[parameter].abs().max()
        error = (ours[parameter] - truth[parameter]).abs().max()
        allowed = (dense[parameter] - truth[parameter]).abs().max() + 2e-6 * scale
        assert error <= allowed, parameter


def test_the_sparse_products_pass_autograds_own_check():
    """Finite differences in float64, with repeated latents and a row without codes."""
    row, latent = torch.tensor([0, 0, 2, 2, 3]), torch.tensor([1, 4, 0, 4, 4])
    pattern, ops = Pattern(row, latent, 4, 6), PlainCodeOps()
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    assert torch.autograd.gradcheck(lambda v, w: decode(v, w, pattern, ops), (leaf(5), leaf(6, 3)))
    assert torch.autograd.gradcheck(
        lambda x, w, b: pre_activations(x, w, b, pattern, ops), (leaf(4, 3), leaf(6, 3), leaf(6))
    )


@pytest.mark.parametrize("name", VARIANTS.names())
def test_rows_may_carry_a_gradient_of_their_own(name):
    """Through the encoder alone, rows and the bias taken from them get opposite gradients."""
    dictionary, x = dictionary_of(name), rows_of().requires_grad_()
    _, _, value = dictionary.activate(x, rows_of(seed=7))
    leaves = (x, dictionary.b_dec_D)
    by_x, by_bias = torch.autograd.grad((value**2).sum(), leaves, materialize_grads=True)
    assert float(by_x.abs().max()) > 0
    if dictionary.centred:
        assert torch.allclose(by_bias, -by_x.sum(dim=0), rtol=1e-11)
    else:
        assert not bool(by_bias.any())


@pytest.mark.parametrize("name", VARIANTS.names())
def test_a_given_set_of_operations_is_the_one_used(name):
    class Counted(PlainCodeOps):
        def __init__(self):
            self.calls = []

        def gather_sum(self, *arguments):
            self.calls.append("gather_sum")
            return super().gather_sum(*arguments)

        def scatter_sum(self, *arguments):
            self.calls.append("scatter_sum")
            return super().scatter_sum(*arguments)

        def dots(self, *arguments):
            self.calls.append("dots")
            return super().dots(*arguments)

    dictionary = dictionary_of(name)
    dictionary.ops = Counted()
    dictionary.loss(run(dictionary, rows_of())).backward()
    assert set(dictionary.ops.calls) == {"gather_sum", "scatter_sum", "dots"}


def test_auxk_gives_no_gradient_to_live_latents():
    dictionary, dead = dictionary_of("topk"), torch.tensor([2, 7])
    forward = dictionary(rows_of(), dead=dead)
    grads = gradients(dictionary, auxk(forward) + 0 * nmse(forward))
    touched = grads["w_dec_LD"].abs().sum(1).nonzero().flatten()
    assert set(touched.tolist()) <= {2, 7}
    assert len(touched) > 0


def test_auxk_is_zero_without_error_or_dead_latents():
    dictionary, x = dictionary_of("topk"), rows_of()
    assert float(auxk(dictionary(x))) == 0.0
    same = dictionary.b_dec_D.detach().expand(4, WIDTH)
    with torch.no_grad():
        dictionary.b_enc_L.fill_(-1)
    assert float(auxk(dictionary(same, dead=torch.tensor([1])))) == 0.0


def test_nmse_is_one_for_the_mean():
    dictionary, x = dictionary_of("topk"), rows_of()
    with torch.no_grad():
        dictionary.b_dec_D.copy_(x.mean(0))
        dictionary.b_enc_L.fill_(-1e6)
    variance = float((x - x.mean(0)).square().sum(1).mean())
    assert float(nmse(dictionary(x, variance=variance)).detach()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", VARIANTS.names())
def test_bfloat16_scores_leave_values_exact(name):
    """Selection may differ in near-ties; the values of what is chosen are float32 products."""
    dictionary, x = dictionary_of(name, dtype=torch.float32), rows_of(dtype=torch.float32)
    g = rows_of(seed=7, dtype=torch.float32)
    exact_pattern, _, _ = dictionary.activate(x, g)
    dictionary.compute_dtype = torch.bfloat16
    pattern, found, value = dictionary.activate(x, g)
    pre = dictionary.read(x) @ dictionary.w_enc_LD.t() + dictionary.b_enc_L
    assert value.dtype == torch.float32
    assert torch.allclose(found, pre[pattern.row, pattern.latent], atol=1e-5)
    exact = set(zip(exact_pattern.row.tolist(), exact_pattern.latent.tolist(), strict=True))
    rounded = set(zip(pattern.row.tolist(), pattern.latent.tolist(), strict=True))
    assert len(exact & rounded) > 0.9 * len(exact)
