"""Derived columns: small numbers about sites, computed in the forward that holds them and kept in their place.

Full attention patterns and logits are the largest things a model makes; what most questions ask of them is a number a row.
Names are ``stat.<what>.<site>`` for a site, ``stat.<what>.blocks.<l>.attn`` for a block's attention, one number a query head,
and ``logits.<what>`` and ``loss`` for what the model predicts:

- ``stat.norm.S``: Euclidean norm of a row of site S, of each head where it has heads;
- ``stat.top.S``, ``stat.top_dim.S``: the eight entries largest in magnitude, largest first, and where they are;
- ``lse``, ``entropy``, ``max_score``, ``top``, ``top_pos``, ``to_first``: of a query's scores, their log-sum-exp and the
  largest; of its weights, their entropy, the largest and the position it lies at, and the first position's;
- ``received``: the mean weight that later queries (itself included) give to a position;
- ``pattern.blocks.<l>.attn``: all weights of a query, on the first 64 positions of its sequence, 0 behind what there is: for
  short probes;
- ``logits.lse``, ``logits.entropy``: of the logits at a row, which predict the token after it; ``logits.label``: the logit
  of that token, NaN where a sequence ends;
- ``loss``: −ln p of a row's own token given those before it, NaN where a sequence begins.

Sums and exponentials are in float32 or wider, logarithms natural.

Dimensions: B batch, T positions, H query heads, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ingest.errors import SiteError
from ingest.models.attention import scores
from ingest.models.contract import AttentionSpec, SiteInfo
from ingest.models.sites import attention_sites, resolve_sites

if TYPE_CHECKING:
    from ingest.models.contract import Given, ModelAdapter

TOP = 8
_QUERIES = 128  # whose scores are held at once
_PREFIXES = ("stat.", "pattern.", "logits.", "loss", "logprob")
PREDICTED = {
    "logits.lse": False,
    "logits.entropy": False,
    "logits.label": True,
    "loss": True,
    "logprob": True,
}
"""Name → whether rows at an end of a sequence have none."""
PROBE = 64
"""Tokens of a sequence at most, where whole patterns are kept."""
_ATTENDED = ("lse", "entropy", "max_score", "top", "top_pos", "to_first", "received")


@dataclass(frozen=True, slots=True)
class DerivedSite:
    """One derived column."""

    info: SiteInfo
    needs: tuple[str, ...]
    """Sites it is computed from; empty for logits."""
    value: Callable[[Mapping[str, Tensor], Tensor], Tensor] | None = None
    """Values of those sites and the mask ``[B, T]`` → ``[B, T, *shape]``; None for logits."""
    gaps: bool = False
    """Whether some rows have none, NaN."""


def is_derived(pattern: str) -> bool:
    """Return whether a name or pattern asks for derived columns."""
    return pattern.startswith(_PREFIXES)


class Derived:
    """The derived columns of a model; it answers ``sites()`` as an adapter does, so that `resolve_sites` reads their names."""

    def __init__(self, adapter: ModelAdapter) -> None:
        self._adapter = adapter
        self.family = adapter.family
        self._columns = _columns(adapter)

    def sites(self) -> dict[str, SiteInfo]:
        """Return the columns by name."""
        return {name: column.info for name, column in self._columns.items()}

    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Return no other names."""
        return {}

    def resolve(self, patterns: Sequence[str]) -> list[str]:
        """Return the columns that some patterns stand for, each once; see `resolve_sites`.

        Raises
        ------
        SiteError
            ``unknown-site``, with what there is.
        """
        found: dict[str, None] = {}
        for pattern in patterns:
            try:
                found |= dict.fromkeys(resolve_sites([pattern], self))
            except SiteError as error:
                raise self._unknown(pattern) from error
        return list(found)

    def _unknown(self, pattern: str) -> SiteError:
        known = ["stat.{norm,top,top_dim}.SITE"]
        if self._adapter.attends:
            known += [f"stat.{{{','.join(_ATTENDED)}}}.blocks.L.attn", "pattern.blocks.L.attn"]
        if self._adapter.causal:
            known += PREDICTED
        return SiteError(
            f"{pattern!r} names no derived column of this {self.family} model with {self._adapter.layers} blocks. Nothing was "
            f"run. Known: {', '.join(known)}, for the model's sites and blocks L from 0 on; sets {{0,2}} and * are understood.",
            kind="unknown-site",
            site=pattern,
        )

    def needs(self, names: Sequence[str]) -> list[str]:
        """Return the sites that the derived columns among some names are computed from."""
        return [
            site for name in names if name in self._columns for site in self._columns[name].needs
        ]

    def predicts(self, names: Sequence[str]) -> bool:
        """Return whether any of some names is made of logits."""
        return any(name in PREDICTED for name in names)

    def attended(self, names: Sequence[str]) -> list[str]:
        """Return the columns among some names that are made of attention, computed over whole sequences."""
        kinds = ("pattern.blocks.", *(f"stat.{one}.blocks." for one in _ATTENDED))
        return [name for name in names if name.startswith(kinds) and name.endswith(".attn")]

    def patterns(self, names: Sequence[str]) -> list[str]:
        """Return the columns among some names that hold whole patterns."""
        return [name for name in self.attended(names) if name.startswith("pattern.")]

    def gaps(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the columns among some names of which some rows have none."""
        return tuple(name for name in names if name in self._columns and self._columns[name].gaps)

    def capture(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        names: Sequence[str],
        *,
        positions_BT: Tensor | None = None,
        given: Given | None = None,
    ) -> dict[str, Tensor]:
        """Return derived columns and sites, ``{name: [B, T, *shape]}`` in the order asked, from one forward.

        The forward runs to its end where logits are asked for, else as far as the deepest site. See `HookedModel.capture`;
        columns made of attention take one sequence a lane.

        Raises
        ------
        ModelError
            Also ``no-head``: the model ends in no logits.
        """
        made = {name: self._columns[name] for name in names if name in self._columns}
        needs = [site for column in made.values() for site in column.needs]
        plain = [name for name in names if name not in made]
        predicted = [name for name in made if name in PREDICTED]
        found: dict[str, Tensor] = {}
        show = None
        if predicted:
            goes_on_BT = attention_mask_BT.bool()
            if positions_BT is not None:
                goes_on_BT = goes_on_BT & (positions_BT > 0).to(goes_on_BT.device)
            show = partial(_predict, found, predicted, input_ids_BT, goes_on_BT)
        captured = self._adapter.capture(
            input_ids_BT,
            attention_mask_BT,
            [*plain, *needs],
            logits=show,
            positions_BT=positions_BT,
            given=given,
        )
        with torch.inference_mode():
            for name, column in made.items():
                if column.value is not None:
                    found[name] = column.value(captured, attention_mask_BT)
        return {name: found[name] if name in made else captured[name] for name in names}


def _columns(adapter: ModelAdapter) -> dict[str, DerivedSite]:
    found: dict[str, DerivedSite] = {}

    def add(
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        needs: Sequence[str],
        value: Callable[[Mapping[str, Tensor], Tensor], Tensor] | None,
        *,
        gaps: bool = False,
    ) -> None:
        info = SiteInfo(name, shape, len(found), dtype=dtype, fixed=True)
        found[name] = DerivedSite(info, tuple(needs), value, gaps)

    for site, info in adapter.sites().items():
        if info.dtype:
            continue  # whole numbers have no size
        width = min(TOP, info.shape[-1])
        add(f"stat.norm.{site}", info.shape[:-1], "float32", [site], partial(_norm, site))
        for name, dtype, what in (("top", "float32", 0), ("top_dim", "int32", 1)):
            shape = (*info.shape[:-1], width)
            add(f"stat.{name}.{site}", shape, dtype, [site], partial(_top, site, width, what))
    for layer in range(adapter.layers if adapter.attends else 0):
        needs = attention_sites(adapter, layer)[:2]
        spec = adapter.attention(layer)
        for one in _ATTENDED:
            dtype = "int32" if one == "top_pos" else "float32"
            value = partial(_attended, one, spec, needs)
            add(f"stat.{one}.blocks.{layer}.attn", (spec.heads,), dtype, needs, value)
        whole = partial(_attended, "pattern", spec, needs)
        add(f"pattern.blocks.{layer}.attn", (spec.heads, PROBE), "float32", needs, whole)
    for name, gaps in PREDICTED.items() if adapter.causal else ():
        add(name, (), "float32", (), None, gaps=gaps)
    return found


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _norm(site: str, values: Mapping[str, Tensor], _mask_BT: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(_wide(values[site]), dim=-1)
    return norm


def _top(
    site: str, width: int, what: int, values: Mapping[str, Tensor], _mask_BT: Tensor
) -> Tensor:
    value = _wide(values[site])
    where = value.abs().topk(width, dim=-1).indices
    return where if what else value.gather(-1, where)


def _attended(
    what: str,
    spec: AttentionSpec,
    needs: tuple[str, str],
    values: Mapping[str, Tensor],
    mask_BT: Tensor,
) -> Tensor:
    """Return one number a query (of ``received``, a key) and head, ``[B, T, H]``; of ``pattern``, ``[B, T, H, PROBE]``."""
    q_BTHd, k_BTGd = (values[site] for site in needs)
    mask_BT = mask_BT.to(q_BTHd.device)
    pieces = []
    received_BTH = torch.zeros(q_BTHd.shape[:3], device=q_BTHd.device)
    for low in range(0, q_BTHd.shape[1], _QUERIES):
        scores_BHTS = scores(
            q_BTHd[:, low : low + _QUERIES], k_BTGd, spec, mask_BT, query_start=low
        )
        if what != "received":
            pieces.append(_OF_SCORES[what](scores_BHTS).transpose(1, 2))
            continue
        weights_BHTS = scores_BHTS.softmax(-1).nan_to_num(0.0)
        weights_BHTS *= mask_BT[:, None, low : low + _QUERIES, None]
        received_BTH += weights_BHTS.sum(2).transpose(1, 2)
    if what == "pattern":
        weights = torch.cat(pieces, 1).nan_to_num(0.0)
        return torch.nn.functional.pad(weights, (0, PROBE - weights.shape[-1]))
    if what != "received":
        return torch.cat(pieces, 1)
    seeing_BT = _seeing(spec, mask_BT)
    return received_BTH / seeing_BT.clamp_min(1)[..., None]


def _seeing(spec: AttentionSpec, mask_BT: Tensor) -> Tensor:
    """Return how many queries see each key, ``[B, T]``."""
    real = mask_BT.bool().long()
    before_BT = real.cumsum(1)  # real positions up to and with each
    total_B1 = before_BT[:, -1:]
    length = real.shape[1]
    at = torch.arange(length, device=real.device)
    last = length - 1 if spec.window is None else spec.window - 1
    high_BT = before_BT[:, (at + last).clamp_max(length - 1)] if spec.window else total_B1
    first = at if spec.causal else (at - last).clamp_min(0) if spec.window else torch.zeros_like(at)
    low_BT = torch.cat([torch.zeros_like(total_B1), before_BT], 1)[:, first]
    return high_BT - low_BT


def _entropy(scores_BHTS: Tensor) -> Tensor:
    logs = scores_BHTS.log_softmax(-1)
    return -(logs.exp() * logs.masked_fill(logs == -torch.inf, 0.0)).sum(-1)


_OF_SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "lse": lambda scores_BHTS: scores_BHTS.logsumexp(-1),
    "entropy": _entropy,
    "max_score": lambda scores_BHTS: scores_BHTS.amax(-1),
    "top": lambda scores_BHTS: scores_BHTS.softmax(-1).amax(-1),
    "top_pos": lambda scores_BHTS: scores_BHTS.argmax(-1),
    "to_first": lambda scores_BHTS: scores_BHTS.softmax(-1)[..., 0],
    "pattern": lambda scores_BHTS: scores_BHTS.softmax(-1),
}


def _predict(
    found: dict[str, Tensor],
    names: Sequence[str],
    ids_BT: Tensor,
    goes_on_BT: Tensor,
    logits_BTV: Tensor,
) -> None:
    """Put what is asked of the logits into ``found``, ``[B, T]`` each; one lane's logits are widened at a time.

    ``goes_on_BT`` says of a token whether the one before it is of the same sequence, and may have predicted it.
    """
    shape, device = logits_BTV.shape[:2], logits_BTV.device
    ids_BT, goes_on_BT = ids_BT.to(device), goes_on_BT.to(device)
    lse_BT = torch.stack([_wide(one).logsumexp(-1) for one in logits_BTV])
    after_BT = torch.zeros(shape, dtype=torch.bool, device=device)
    after_BT[:, :-1] = goes_on_BT[:, 1:]
    label_BT = torch.full(shape, torch.nan, dtype=lse_BT.dtype, device=device)
    label_BT[:, :-1] = _wide(logits_BTV[:, :-1].gather(2, ids_BT[:, 1:, None]).squeeze(2))
    label_BT.masked_fill_(~after_BT, torch.nan)
    if "logits.lse" in names:
        found["logits.lse"] = lse_BT
    if "logits.label" in names:
        found["logits.label"] = label_BT
    if "logits.entropy" in names:
        found["logits.entropy"] = torch.stack([_entropy(_wide(one)) for one in logits_BTV])
    loss_BT = torch.full_like(label_BT, torch.nan)
    loss_BT[:, 1:] = (lse_BT - label_BT)[:, :-1]
    if "loss" in names:
        found["loss"] = loss_BT
    if "logprob" in names:
        found["logprob"] = -loss_BT
