"""What a number per example changes by at every site: the backward of a hooked model, by rule.

To each site a zero is added, and what is returned is the derivative by it: nothing is differentiated by weights, and nothing
before the first site that was asked for.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ingest.errors import ModelError, SiteError
from ingest.models.contract import Bends
from ingest.models.rules import GradRule, Objective, frozen_attention, ruled
from ingest.models.sites import broken_site

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ingest.models.contract import ModelAdapter

    class HookedModel(ModelAdapter, Protocol):
        """An adapter over modules that can be reached."""

        model: nn.Module
        base: nn.Module
        bends: Bends | None


def gradients(
    model: HookedModel,
    ids_BT: Tensor,
    mask_BT: Tensor,
    sites: Sequence[str],
    objective: Objective,
    rule: GradRule,
    partner_BT: Tensor | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """See `HookedModel.gradients`."""
    check_head(model.model)
    _check_rule(model, rule)
    blocks = [None] if rule.drop == "none" else list(range(model.layers))
    sums: dict[str, Tensor] = {}
    values: list[Tensor] = []
    for way in _ways(model, ids_BT, mask_BT, rule, partner_BT):
        for block in blocks:
            grads, value = _run(model, ids_BT, mask_BT, sites, objective, rule, way, block)
            values.append(value)
            if rule.steps * len(blocks) == 1:
                return grads, value
            for site, grad in grads.items():  # summed in float32 where the model computes in less
                wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
                sums[site] = sums[site].add_(wide) if site in sums else wide.clone()
    count = len(values)
    return {site: grad / count for site, grad in sums.items()}, torch.stack(values).mean(0)


def _check_rule(model: HookedModel, rule: GradRule) -> None:
    """Raise where a rule changes what a family does not say it has: it would be the exact one under another name."""
    exact = GradRule(point=rule.point, steps=rule.steps)
    if model.bends is None and rule != exact:
        changed = [name for name, value in rule.to_json().items() if value != exact.to_json()[name]]
        raise ModelError(
            f"the {model.family} model does not say where its norms, activations and attention lie, which a gradient rule "
            f"with {', '.join(changed)} changes. Nothing was run. Use the exact rule, or declare the family's `Bends`.",
            kind="rule-unsupported",
        )


def _ways(
    model: HookedModel, ids_BT: Tensor, mask_BT: Tensor, rule: GradRule, partner_BT: Tensor | None
) -> Iterator[Tensor | None]:
    """Yield what is added to the embeddings in each run, ``[B, T, D]``; None for nothing."""
    if rule.point == "here":
        yield None
        return
    if partner_BT is None or partner_BT.shape != ids_BT.shape:
        raise ModelError(
            "a gradient between two prompts was asked for; "
            f"{'one' if partner_BT is None else list(partner_BT.shape)} was given beside {list(ids_BT.shape)}. Nothing "
            "was run. Give each prompt its partner, of equal length.",
            kind="bad-input",
        )
    mine, other = (
        model.capture(ids, mask_BT, ["embed"])["embed"].clone() for ids in (ids_BT, partner_BT)
    )
    for step in range(rule.steps):
        yield (other - mine) * ((step + 0.5) / rule.steps)


def _run(
    model: HookedModel,
    ids_BT: Tensor,
    mask_BT: Tensor,
    sites: Sequence[str],
    objective: Objective,
    rule: GradRule,
    way: Tensor | None,
    without: int | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the gradients and values of one run."""
    bends = model.bends or Bends()
    device = next(model.base.parameters()).device
    probes: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.enable_grad():
        hooks.enter_context(ruled(model.base, bends, model.layers, rule, without))
        if way is not None:
            hooks.enter_context(model.listen("embed", partial(torch.add, way)))
        for site in dict.fromkeys(sites):
            probe = partial(_probed, probes, site, model.family)
            hooks.enter_context(model.listen(site, probe))
        if rule.attn == "frozen":
            for handle in frozen_attention(model.base, bends, model.layers):
                hooks.enter_context(handle)
        logits = model.model(
            input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False
        ).logits
        values = objective(logits)
        if missed := [site for site in sites if site not in probes]:
            raise broken_site(model.family, missed[0], "the forward never reached it")
        places = [probes[site] for site in dict.fromkeys(sites)]
        found: Any = [None] * len(places)  # where a rule leaves no way from any of them
        if values.requires_grad:
            found = torch.autograd.grad(values.sum(), places, allow_unused=True)
    return {
        site: torch.zeros_like(probes[site]) if grad is None else grad
        for site, grad in zip(dict.fromkeys(sites), found, strict=True)
    }, values.detach()


def _probed(probes: dict[str, Tensor], site: str, family: str, value: Tensor) -> Tensor:
    """Add a zero that is differentiated by."""
    if site in probes:
        raise broken_site(family, site, "the forward passed it twice")
    probes[site] = torch.zeros_like(value, requires_grad=True)
    return value + probes[site]


def check_gradients(model: ModelAdapter, sites: Sequence[str]) -> None:
    """Raise ``no-gradient`` where nothing changes by degrees with one of the sites."""
    known = model.sites()
    none = [site for site in sites if site in known and not known[site].differentiable]
    if none:
        raise SiteError(
            f"the gradient at {', '.join(none)} was asked for; whole numbers have none, nor has what the model does not go on "
            "with. Nothing was run. Leave it out.",
            kind="no-gradient",
            site=none[0],
        )


def check_head(model: nn.Module) -> None:
    """Raise ``no-head`` unless a model ends in logits of the next token."""
    embeddings: Any = getattr(model, "get_output_embeddings", None)
    if embeddings is None or embeddings() is None:
        raise ModelError(
            f"logits were asked of a {type(model).__name__}, which has no language-modelling head. Nothing was run. "
            "Load a checkpoint whose architecture ends in ForCausalLM or LMHeadModel.",
            kind="no-head",
        )
