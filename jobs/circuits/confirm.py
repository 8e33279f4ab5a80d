"""Whether heads that look like induction heads are: the loss on repeated tokens with and without them.

A score says where a head looks. Here each head is taken out of the running model in turn, on random tokens
repeated once, where nothing but the first copy tells what comes next. Redundancy is why three things are
reported: one head alone (others may stand in for it), all high-scoring heads together, and as many
low-scoring heads of the same layers. A head is confirmed where the lower end of its interval lies above 0 and
above the largest rise of a low-scoring head of its own layer; heads of other layers are left out of that
comparison, for previous-token heads below carry the same circuit.

Dimensions: N sequences, T positions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from ingest.models.metrics import METRICS, Examples
from jobs.circuits.copying import copying_scores
from jobs.errors import JobError
from jobs.interventions import Runner, head_ablations, site_means
from jobs.results import Result

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.models import LoadedModel

Array = np.ndarray[Any, np.dtype[Any]]
Head = tuple[int, int]
SPANS = ("first", "second")
_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmConfig:
    """What data, which ablation, and from which score on a head counts as strong."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One set of sequences each; a verdict needs all of them."""
    sequences: int = 16
    """N of each seed."""
    periods: tuple[int, int] = (50, 100)
    """Tokens of a block, drawn for each sequence from this range, both ends included."""
    threshold: float = 0.3
    """Heads with at least this prefix matching are strong."""
    op: str = "mean"
    """``mean`` puts a head's mean over the same sequences in its place, ``zero`` nothing. Zero is farther from
    what the model has seen, and can hurt for that alone."""

    def __post_init__(self) -> None:
        low, high = self.periods
        if (
            not self.seeds
            or self.sequences < 1
            or not 3 <= low <= high
            or self.op not in ("mean", "zero")
        ):
            raise JobError(
                f"a confirmation with {len(self.seeds)} seeds, {self.sequences} sequences of blocks of {low} to "
                f"{high} tokens, by {self.op!r} was asked for; it takes at least one seed and sequence, blocks "
                "of 3 or more, and mean or zero. Nothing was run. Mend the settings.",
                kind="bad-number",
            )


def repeated_tokens(model: LoadedModel, config: ConfirmConfig, seed: int) -> Examples:
    """Return BOS and a block of distinct random tokens twice, one block and period for each sequence.

    The span ``first`` is the first copy, ``second`` the second without its first token, which nothing predicts.
    Shorter sequences are padded at the end. Special tokens do not occur in blocks.

    Raises
    ------
    JobError
        ``no-bos``, or ``too-few-tokens`` where the vocabulary is smaller than a block.
    """
    tokenizer, settings = model.tokenizer, cast("Any", model.model.config)
    bos = next(
        (
            i
            for i in (tokenizer.bos_token_id, getattr(tokenizer, "eos_token_id", None))
            if i is not None
        ),
        None,
    )
    ordinary = np.setdiff1d(
        np.arange(settings.vocab_size), np.asarray(tokenizer.all_special_ids, int)
    )
    low, high = config.periods
    if bos is None or len(ordinary) < high:
        raise JobError(
            f"repeated tokens in blocks of {low} to {high} were asked of {model.name}; it has "
            f"{len(ordinary)} ordinary tokens and {'no ' if bos is None else 'a '}token to begin with. Nothing "
            "was run. Use shorter blocks, or a model that has these.",
            kind="no-bos" if bos is None else "too-few-tokens",
        )
    rng = np.random.default_rng([seed, config.sequences, low, high])
    periods = rng.integers(low, high + 1, config.sequences)
    ids = np.full((config.sequences, 1 + 2 * int(periods.max())), bos)
    mask = np.zeros_like(ids)
    for number, period in enumerate(periods.tolist()):
        block = rng.permutation(ordinary)[:period]
        ids[number, 1 : 1 + 2 * period] = np.concatenate([block, block])
        mask[number, : 1 + 2 * period] = 1
    first = np.stack([np.ones_like(periods), periods + 1], 1)
    second = np.stack([periods + 2, 2 * periods + 1], 1)
    return Examples(
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        spans={"first": torch.from_numpy(first), "second": torch.from_numpy(second)},
    )


class _Trial:
    """One seed's sequences: losses with the model whole, and without any heads."""

    def __init__(self, model: LoadedModel, config: ConfirmConfig, seed: int) -> None:
        examples = repeated_tokens(model, config, seed)
        metrics = [METRICS.parse({"kind": "nll", "span": span}) for span in SPANS]
        self.op, self.seed = config.op, seed
        self.runner = Runner(model, [examples], metrics)
        sites = [f"blocks.{layer}.attn.z" for layer in range(model.adapter.layers)]
        self.means = site_means(model, [examples], sites) if config.op == "mean" else None
        self.before = np.stack(self.runner.base())
        self._rng = np.random.default_rng([seed, 1])
        self._draws = self._rng.integers(0, config.sequences, (_RESAMPLES, config.sequences))

    def without(self, heads: Sequence[Head]) -> dict[str, Any]:
        """Return the losses before and after, and the rise on the second copy with its 95 % interval."""
        table = self.runner.run(head_ablations(heads, self.op, self.means))
        after = np.asarray(table["intervened"]).reshape(self.before.shape)
        rise_N = after[1] - self.before[1]
        low, high = np.percentile(rise_N[self._draws].mean(1), [2.5, 97.5])
        return {
            "loss_first_before": self.before[0].mean(),
            "loss_first_after": after[0].mean(),
            "loss_second_before": self.before[1].mean(),
            "loss_second_after": after[1].mean(),
            "rise": rise_N.mean(),
            "rise_low": low,
            "rise_high": high,
        }


def ablation_tables(
    model: LoadedModel,
    heads: Mapping[str, Any],
    config: ConfirmConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the tables ``ablation`` and ``confirmation``.

    Parameters
    ----------
    model
        A causal model with a language-modelling head.
    heads
        Columns layer, head and prefix_matching, as `induction` gives them; every head listed is ablated.
    config
        What data, and how.
    progress
        Called with (forwards done, forwards).

    Returns
    -------
    dict
        ``ablation``: seed, what (``head``; ``strong``, all heads from the threshold on; ``weak``, as many
        of the lowest score in the same layers), layer and head (-1 for sets), heads (how many), score (mean
        prefix matching), loss_first_before, loss_first_after, loss_second_before, loss_second_after (nats,
        means over sequences), rise (on the second copy), rise_low, rise_high (95 % interval, bootstrap over
        sequences).

        ``confirmation``, a row per seed: seed, layer, head (of the top score), score, rise, rise_low,
        rise_high, rank (of its rise among all single heads, from 1), control_layer, control_head,
        control_rise (lowest score in its layer), weak_rise (largest single rise in its layer among heads below
        the threshold), strong (how many), strong_rise, confirmed.
    """
    config = config or ConfirmConfig()
    listed = _listed(heads)
    rows: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    strong = [head for head in listed if listed[head] >= config.threshold]
    sets = {"strong": strong, "weak": _weakest(listed, strong)}
    sets = {name: found for name, found in sets.items() if found}
    total = len(config.seeds) * (len(listed) + len(sets))
    count = itertools.count(1)

    def without(trial: _Trial, found: Sequence[Head]) -> dict[str, Any]:
        got = trial.without(found)
        if progress is not None:
            progress(next(count), total)
        return got

    for seed in config.seeds:
        trial = _Trial(model, config, seed)
        single = {head: without(trial, [head]) for head in listed}
        joint = {name: without(trial, found) for name, found in sets.items()}
        rows += [_row(seed, "head", [head], listed, got) for head, got in single.items()]
        rows += [_row(seed, name, sets[name], listed, got) for name, got in joint.items()]
        verdicts.append(_verdict(seed, config.threshold, listed, single, joint))
    return {"ablation": _columns(rows), "confirmation": _columns(verdicts)}


def confirm_induction(
    model: LoadedModel,
    heads: Mapping[str, Any],
    out: str | Path,
    config: ConfirmConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Write the result ``confirm-<hash>``: tables ``ablation``, ``confirmation`` and ``copying``.

    Arguments are those of `ablation_tables`; ``out`` is the folder above ``results``. The same model, scores and
    settings find the result done.
    """
    config = config or ConfirmConfig()
    listed = {f"{layer}.{head}": score for (layer, head), score in _listed(heads).items()}
    identity = {
        **dataclasses.asdict(config),
        "model": model.name,
        "weights": dict(model.files),
        "compute_dtype": model.compute_dtype,
        "heads_sha256": hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
    }
    result = Result.create(out, "confirm", identity, seed=config.seeds[0])
    if result.done:
        return result
    with result:
        for name, table in ablation_tables(model, heads, config, progress=progress).items():
            result.write_table(name, table)
        examples = repeated_tokens(model, config, config.seeds[0])
        result.write_table("copying", copying_scores(model, examples))
    return result


def _listed(heads: Mapping[str, Any]) -> dict[Head, float]:
    """Return each head's score, by layer and head; scores that are no number are left out."""
    columns = [np.asarray(heads[name]).tolist() for name in ("layer", "head", "prefix_matching")]
    found = {
        (layer, head): score for layer, head, score in zip(*columns, strict=True) if score == score
    }
    if not found:
        raise JobError(
            "heads were to be confirmed; none of those given has a prefix-matching score: no token came a "
            "second time in what was scored. Nothing was run. Score them on text that repeats: --source "
            "repeats.",
            kind="no-scores",
        )
    return dict(sorted(found.items()))


def _weakest(listed: Mapping[Head, float], strong: Sequence[Head]) -> list[Head]:
    """Return, for each layer, as many of its lowest-scoring other heads as it has strong ones."""
    found: list[Head] = []
    for layer in sorted({layer for layer, _ in strong}):
        wanted = sum(head[0] == layer for head in strong)
        others = [head for head in listed if head[0] == layer and head not in strong]
        found += sorted(others, key=lambda head: (listed[head], head))[:wanted]
    return found


def _row(
    seed: int,
    what: str,
    heads: Sequence[Head],
    listed: Mapping[Head, float],
    got: Mapping[str, Any],
) -> dict[str, Any]:
    layer, head = heads[0] if what == "head" else (-1, -1)
    score = float(np.mean([listed[one] for one in heads]))
    names = {"seed": seed, "what": what, "layer": layer, "head": head, "heads": len(heads)}
    return {**names, "score": score, **got}


def _verdict(
    seed: int,
    threshold: float,
    listed: Mapping[Head, float],
    single: Mapping[Head, Mapping[str, Any]],
    joint: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    top = max(listed, key=lambda head: (listed[head], (-head[0], -head[1])))
    mine = single[top]
    layer = [head for head in listed if head[0] == top[0] and head != top]
    control = min(layer, key=lambda head: (listed[head], head), default=None)
    weak = [single[head]["rise"] for head in layer if listed[head] < threshold]
    bar = max([0.0, *weak])
    nothing = float("nan")
    return {
        "seed": seed,
        "layer": top[0],
        "head": top[1],
        "score": listed[top],
        **{name: mine[name] for name in ("rise", "rise_low", "rise_high")},
        "rank": 1 + sum(got["rise"] > mine["rise"] for got in single.values()),
        "control_layer": -1 if control is None else control[0],
        "control_head": -1 if control is None else control[1],
        "control_rise": nothing if control is None else single[control]["rise"],
        "weak_rise": max(weak, default=nothing),
        "strong": sum(score >= threshold for score in listed.values()),
        "strong_rise": joint["strong"]["rise"] if "strong" in joint else nothing,
        "confirmed": int(mine["rise_low"] > bar),
    }


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: [row[name] for row in rows]
        if isinstance(rows[0][name], str)
        else np.array([row[name] for row in rows])
        for name in rows[0]
    }
