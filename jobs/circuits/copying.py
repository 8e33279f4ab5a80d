"""What heads write: the push they give the right token on text that repeats, and what their weights would copy.

A property of a model and not of rows, since it takes the model's matrices: nothing here merges, and the statistic
`induction` does not hold it.

Dimensions: R rows, V vocabulary, H query heads, G key heads, d width of the residual stream, e width of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ingest.models import attention_sites
from jobs.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.models import LoadedModel
    from ingest.models.metrics import Examples

_TOKENS = 256  # fed at a time; any number gives the same


def copying_scores(model: LoadedModel, examples: Examples, span: str = "second") -> dict[str, Any]:
    """Return the table (layer, head, copying, ov_ratio, ov_diagonal) of every head.

    ``copying``, nats: the mean over a span's tokens t of what the head adds, at the position before, directly to
    the logit of t over the mean of all tokens' logits: ``z_h W_O`` through the final norm as it was in that
    forward, times ``W_U``. What later blocks make of it does not count.

    ``ov_ratio`` and ``ov_diagonal`` come from weights alone. The head's OV circuit is the matrix ``C [V, V]``: what
    full attention to a token adds to the logit of every token. ``ov_ratio = sum(Re lambda) / sum|lambda|`` over its
    eigenvalues: 1 where it only raises what it attends to, -1 where it only lowers it, 0 for a head that writes
    nothing. ``ov_diagonal = trace(C) / V`` is the mean rise of the attended token's own logit at a final scale of 1.

    Parameters
    ----------
    examples
        Text that repeats (`repeated_tokens`).
    span
        The tokens that copying predicts.

    Raises
    ------
    JobError
        ``no-head``.

    Notes
    -----
    OV weights see a token as its embedding through the block's norm. At deep blocks, more so with tied
    embeddings, the residual stream shows a token otherwise: the shipped model's induction heads copy (all four
    have the largest ``copying``) and have negative ``ov_ratio``. Values are measured by feeding embeddings to
    the block and unit vectors in the place of z; biases cancel; the final norm's gain and centring count.
    ``C = A B`` with A ``[V, e]``, so its nonzero eigenvalues are those of ``B A [e, e]``.

    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021), "Summarizing OV/QK
    matrices"; direct contributions as in its "Logit attribution". Deviation: embeddings go through the norm.
    """
    network: Any = model.model
    unembed = getattr(network, "get_output_embeddings", lambda: None)()
    if unembed is None:
        raise JobError(
            f"copying scores of {model.name} were asked for; it has no language-modelling head to write to. "
            "Nothing was run. Load a checkpoint whose architecture ends in ForCausalLM or LMHeadModel.",
            kind="no-head",
        )
    unembed_Vd = unembed.weight.detach().double().cpu()
    embed_Vd = network.get_input_embeddings().weight.detach()
    rows: list[tuple[Any, ...]] = []
    for layer in range(model.adapter.layers):
        spec = model.adapter.attention(layer)
        values_VGe = _values(model, layer, embed_Vd)
        out_Hed = _before_unembedding(model, _read_out(model, layer))
        copied = _direct(model, layer, out_Hed, unembed_Vd, examples, span)
        for head in range(spec.heads):
            a_Ve = values_VGe[:, head // (spec.heads // spec.kv_heads)]
            core_ee = (out_Hed[head] @ unembed_Vd.T) @ a_Ve
            rows.append((layer, head, float(copied[head]), *_summary(core_ee, len(a_Ve))))
    names = ("layer", "head", "copying", "ov_ratio", "ov_diagonal")
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return {name: np.array(values) for name, values in columns}


def _direct(
    model: LoadedModel,
    layer: int,
    out_Hed: Tensor,
    unembed_Vd: Tensor,
    examples: Examples,
    span: str,
) -> Tensor:
    """Return each head's mean direct contribution to the logits of the span's tokens, float64 ``[H]``."""
    z_site = attention_sites(model.adapter, layer)[3]
    last = f"blocks.{model.adapter.layers - 1}.resid_post"
    got = model.adapter.capture(examples.ids, examples.mask, [z_site, last])
    predicted = examples.within(span)[:, 1:]
    z_RHe, x_Rd = (got[site][:, :-1].cpu()[predicted].double() for site in (z_site, last))
    target_Rd = (unembed_Vd - unembed_Vd.mean(0))[examples.ids[:, 1:][predicted]]
    reads_RHe = torch.einsum("rd,hed->rhe", target_Rd, out_Hed)
    return ((z_RHe * reads_RHe).sum(2) / _final_scale(model, x_Rd)[:, None]).mean(0)


def _summary(core_ee: Tensor, vocab: int) -> tuple[float, float]:
    roots = torch.linalg.eigvals(core_ee)
    size = float(roots.abs().sum())
    return float(roots.real.sum()) / size if size > 0 else 0.0, float(core_ee.trace()) / vocab


def _values(model: LoadedModel, layer: int, embed_Vd: Tensor) -> Tensor:
    """Return the value vector of every token's embedding, biases taken away, float64 ``[V, G, e]``."""
    site = attention_sites(model.adapter, layer)[2]
    into = f"blocks.{layer}.resid_pre"
    found = _mapped(model, into, site, torch.cat([torch.zeros_like(embed_Vd[:1]), embed_Vd]))
    return found[1:] - found[:1]


def _read_out(model: LoadedModel, layer: int) -> Tensor:
    """Return W_O of every head, float64 ``[H, e, d]``."""
    spec = model.adapter.attention(layer)
    into = attention_sites(model.adapter, layer)[3]
    size = spec.heads * spec.head_width
    units = torch.cat([torch.zeros(1, size), torch.eye(size)]).view(-1, spec.heads, spec.head_width)
    found = _mapped(model, into, f"blocks.{layer}.attn.out", units)
    return (found[1:] - found[:1]).view(spec.heads, spec.head_width, -1)


def _mapped(model: LoadedModel, into: str, out: str, inputs: Tensor) -> Tensor:
    """Return what a site says when another is given ``inputs [N, *shape]``, float64 ``[N, *shape]``."""
    longest = model.adapter.max_positions or _TOKENS
    parts = []
    for chunk in torch.split(inputs, min(_TOKENS, longest)):
        ids = torch.zeros(1, len(chunk), dtype=torch.long)
        with model.adapter.listen(into, _given(chunk)):
            parts.append(model.adapter.capture(ids, torch.ones_like(ids), [out])[out][0].double())
    return torch.cat(parts).cpu()


def _given(chunk: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda value: chunk[None].to(value)


def _before_unembedding(model: LoadedModel, rows: Tensor) -> Tensor:
    """Return directions of the residual stream ``[…, d]`` as the unembedding meets them, up to the norm's scale."""
    norm = _final_norm(model)
    gain = getattr(norm, "weight", None)
    if isinstance(norm, nn.LayerNorm):
        rows = rows - rows.mean(-1, keepdim=True)
    return rows if gain is None else rows * gain.detach().double().cpu()


def _final_scale(model: LoadedModel, x_Rd: Tensor) -> Tensor:
    """Return what the final norm divides rows by, ``[R]``; 1 where there is none."""
    norm = _final_norm(model)
    if norm is None:
        return torch.ones(len(x_Rd), dtype=x_Rd.dtype)
    if isinstance(norm, nn.LayerNorm):
        x_Rd = x_Rd - x_Rd.mean(1, keepdim=True)
    eps = float(getattr(norm, "eps", getattr(norm, "variance_epsilon", 0.0)))
    return (x_Rd.square().mean(1) + eps).sqrt()


def _final_norm(model: LoadedModel) -> nn.Module | None:
    aliases = model.adapter.aliases()
    known = dict(model.model.named_modules())
    paths = [path for path, sites in aliases.items() if sites == ("final.normalized",)]
    return next((known[path] for path in paths if path in known), None)
