"""Gradient rules: what the backward of a model does at the modules that are not linear.

A rule changes no value: every hook returns the module's own output (but for the sign of zeros), with another way back. It
acts on a model that is already loaded, while its context is open. Of attention, the pattern is held by handing the attention
function queries and keys that are constants: values keep their way back.

Sources: AtP and GradDrop, Kramár et al. (arXiv 2403.00745), of which the plain gradient and the mean over dropped blocks are
stored (the paper adds the absolute values of each drop's products); integrated gradients over inputs, Sundararajan et al.
(2017), as EAP-IG uses them (Hanna et al., 2024), at the middles of steps; RelP, arXiv 2508.21258: layer norms as linear maps with
their scale held, activations as ``x · (act(x) / x)`` with the quotient held, products of two branches halved, attention
patterns held or not; attribution graphs, Ameisen et al. (2025): norms' scales and attention patterns held, nothing through MLPs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ingest.errors import ModelError
from ingest.models.seam import listen_at

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from ingest.models.contract import Bends

_STABLE = 1e-6


_KNOWN = {
    "norm": ("exact", "frozen"),
    "act": ("exact", "identity"),
    "gate": ("exact", "half"),
    "attn": ("exact", "frozen"),
    "mlp": ("pass", "block"),
    "point": ("here", "inputs"),
    "drop": ("none", "layers"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GradRule:
    """What stands in for the derivative, kind of module by kind of module."""

    norm: Literal["exact", "frozen"] = "exact"
    """``frozen``: a norm divides by its scale as by a constant; the mean it takes off stays a function."""
    act: Literal["exact", "identity"] = "exact"
    """``identity``: an activation multiplies by ``act(x) / (x ± 1e-6)`` as by a constant."""
    gate: Literal["exact", "half"] = "exact"
    """``half``: each of two branches that are multiplied gets half of what comes back."""
    attn: Literal["exact", "frozen"] = "exact"
    """``frozen``: where attention looks is a constant; nothing comes back to q and k."""
    mlp: Literal["pass", "block"] = "pass"
    """``block``: nothing comes back through an MLP."""
    point: Literal["here", "inputs"] = "here"
    """``inputs``: the mean over points between a prompt's token embeddings and its partner's, the middles of ``steps`` pieces
    of the straight way; everything behind the embeddings takes its own values there."""
    steps: int = 1
    """Points of ``inputs``."""
    drop: Literal["none", "layers"] = "none"
    """``layers``: the mean over as many runs as there are blocks, in each of which nothing comes back through one of them."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)!r}"
            for name, known in _KNOWN.items()
            if getattr(self, name) not in known
        ]
        if wrong or self.steps < 1 or (self.point == "here" and self.steps != 1):
            raise ModelError(
                f"a gradient rule with {', '.join(wrong) or f'steps={self.steps} at point {self.point!r}'} was asked for; "
                f"known: {_KNOWN}, and steps from 1 on between inputs. Nothing was run.",
                kind="bad-rule",
            )

    def to_json(self) -> dict[str, str | int]:
        """Return the fields by name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


RULES = {
    "exact": GradRule(),
    "ig": GradRule(point="inputs", steps=10),
    "grad_drop": GradRule(drop="layers"),
    "relp": GradRule(norm="frozen", act="identity", gate="half"),
    "relp_ah": GradRule(norm="frozen", act="identity", gate="half", attn="frozen"),
    "attribution_graph": GradRule(norm="frozen", attn="frozen", mlp="block"),
}
"""Rules by the names that groups and commands give them."""


def rule_of(name: str) -> GradRule:
    """Return a rule by name.

    Raises
    ------
    ModelError
        ``unknown-name``, with the known ones.
    """
    if name not in RULES:
        raise ModelError(
            f"there is no gradient rule {name!r}; known: {', '.join(RULES)}. Nothing was run.",
            kind="unknown-name",
        )
    return RULES[name]


@contextmanager
def ruled(
    base: nn.Module, bends: Bends, layers: int, rule: GradRule, without: int | None = None
) -> Iterator[None]:
    """Let the backward of every forward inside follow a rule, but for attention's (`frozen_attention`).

    Hooks that were there run before, so a site's own hook belongs behind: open this first.

    Parameters
    ----------
    without
        Block through whose halves nothing comes back: what reaches the stream before it came past it.
    """
    turns: list[tuple[bool, tuple[str, ...], Any]] = [
        (rule.norm == "frozen", bends.norms, partial(_norm, bends)),
        (rule.act == "identity", bends.activations, _activation),
        (rule.mlp == "block", bends.mlps, _blocked),
    ]
    with ExitStack() as hooks:
        for wanted, paths, hook in turns:
            for module in _modules(base, paths, layers) if wanted else ():
                hooks.enter_context(module.register_forward_hook(hook))
        halves = (*bends.adds, *bends.mlps) if without is not None else ()
        for path in halves:
            module = base.get_submodule(path.format(l=without))
            hooks.enter_context(module.register_forward_hook(_blocked))
        for module in _modules(base, bends.products, layers) if rule.gate == "half" else ():
            hooks.enter_context(module.register_forward_pre_hook(_halved))
        yield


def frozen_attention(base: nn.Module, bends: Bends, layers: int) -> list[RemovableHandle]:
    """Make where attention looks a constant in every forward; whoever listens at q and k already comes before."""
    return [
        listen_at(module, end, Tensor.detach)
        for module in _modules(base, bends.attentions, layers)
        for end in ("query", "key")
    ]


def _modules(base: nn.Module, paths: tuple[str, ...], layers: int) -> list[nn.Module]:
    """Return the modules at some paths, each once: an activation may be one object for all blocks."""
    names = [
        path.format(l=layer)
        for path in paths
        for layer in (range(layers) if "{l}" in path else (0,))
    ]
    return list(dict.fromkeys(base.get_submodule(name) for name in names))


def _as(value: Tensor, way: Tensor) -> Tensor:
    """Return a value, bit for bit, whose gradient goes the way of another: ``way - way`` is zero."""
    return value.detach() + (way - way.detach())


def _norm(bends: Bends, module: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
    x = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
    centred = x - x.mean(-1, keepdim=True) if isinstance(module, nn.LayerNorm) else x
    eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", 0.0)
    scale = (centred.detach().square().mean(-1, keepdim=True) + eps).rsqrt()
    return _as(out, (centred * scale * bends.gain(module)).to(out.dtype))


def _activation(_module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    x = args[0]
    stable = x.detach() + torch.where(x.detach() < 0, -_STABLE, _STABLE).to(x.dtype)
    return _as(out, x * (out.detach() / stable))


def _blocked(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
    return out.detach()


def _halved(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return _as(args[0], args[0] / 2), *args[1:]


Objective = Callable[[Tensor], Tensor]
"""Logits ``[B, T, V]`` → one number per example ``[B]``."""
