"""Trains the like of the shipped model: ``python -m ingest.models.weights.train --out DIR``.

Weights are float32, products bfloat16 (autocast); every ``--save-every`` steps the whole state goes to
``state.safetensors``, and a run that finds one goes on from it to the same weights. Equal bits need the same
hardware class and number of threads. It ends with the files of a model folder, weights in bfloat16, and
``training.json``: the recipe, losses and what it ran on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ingest.contract import Array, Vocabulary
from ingest.errors import ModelError
from ingest.models.dtypes import check_device, hardware_class
from ingest.models.outside import quiet
from ingest.models.weights.recipe import (
    BOS_ID,
    USUAL,
    Recipe,
    batch,
    standard_library,
    stream,
    train_tokenizer,
)
from store.schema import subseed

log = logging.getLogger(__name__)
_STATE = "state.safetensors"
_BETAS = (0.9, 0.95)


def train(
    recipe: Recipe,
    out: Path,
    *,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
    device: str = "cpu",
    save_every: int = 200,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Train (or go on training) a model in ``out`` and return what ``training.json`` says.

    Parameters
    ----------
    texts
        To train on, and held out; the standard library's where None.
    stop_after
        Save and return after this many steps in all, as if interrupted there.

    Raises
    ------
    ModelError
        ``recipe-differs``: ``out`` holds the state of another recipe or of other texts.
    """
    place = check_device(device)
    train_on, held_out = texts or standard_library(recipe.seed)
    tokenizer = train_tokenizer(train_on, recipe.vocab)
    tokens_N = stream(train_on, tokenizer)
    log.info("%d texts, %d tokens of %d", len(train_on), len(tokens_N), len(tokenizer))
    model = _new_model(recipe, len(tokenizer)).to(place)
    optimizer = _optimizer(model, recipe)
    identity = _identity(recipe, tokens_N)
    step = _resume(out / _STATE, model, optimizer, identity)
    end = min(recipe.steps, stop_after or recipe.steps)
    report = _reporter(recipe, step)
    while step < end:
        ids = torch.from_numpy(batch(recipe, tokens_N, len(tokenizer), step)).to(place)
        loss = _step(model, optimizer, ids, recipe, step)
        step += 1
        report(step, loss)
        if step % save_every == 0 or step == end:
            _save_state(out / _STATE, model, optimizer, identity, step)
    summary = _measured(model, tokenizer, recipe, step, held_out, place)
    _write_model(model, tokenizer, out, summary)
    return summary


def loss_by_copy(
    model: Any, vocab: int, *, sequences: int = 16, period: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Return the mean loss on the first and on the second copy of blocks of random tokens, in nats.

    A sequence is ``<|bos|>`` and ``period`` tokens, all different, said twice (the source ``repeats``). The second
    copy's first token, which nothing foretells, is left out.
    """
    from ingest.sources import SOURCES

    source = SOURCES.get("repeats")(sequences=sequences, low=period, high=period, seed=seed)
    special = tuple(range(USUAL))
    documents = source.token_documents(Vocabulary(tokens=vocab, special=special, bos=BOS_ID))
    ids_BT = np.stack([document.token_ids for document in documents])
    losses_BT = _losses(model, torch.from_numpy(ids_BT).long())
    return losses_BT[:, :period].mean().item(), losses_BT[:, period + 1 :].mean().item()


def loss_on_text(model: Any, tokens_N: Array, length: int, *, sequences: int = 64) -> float:
    """Return the mean loss on the first sequences of a run of tokens, in nats a token."""
    count = min(sequences, len(tokens_N) // length)
    ids_BT = torch.from_numpy(tokens_N[: count * length].reshape(count, length)).long()
    losses = [_losses(model, ids_1T[None]) for ids_1T in ids_BT]
    return torch.cat(losses).mean().item()


@torch.no_grad()
def _losses(model: Any, ids_BT: Tensor) -> Tensor:
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        logits_BTV = model(input_ids=ids_BT.to(device), use_cache=False).logits
    return _next_token_losses(logits_BTV, ids_BT.to(device))


def _next_token_losses(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    flat = cross_entropy(
        logits_BTV[:, :-1].float().flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none"
    )
    return flat.view(len(ids_BT), -1)


def _new_model(recipe: Recipe, vocab: int) -> Any:
    from transformers import LlamaForCausalLM

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(subseed(recipe.seed, "weights") % 2**63)
        return LlamaForCausalLM(recipe.config(vocab)).train()


def _optimizer(model: Any, recipe: Recipe) -> torch.optim.AdamW:
    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": recipe.decay},
        {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak, betas=_BETAS)


def _step(model: Any, optimizer: Any, ids_BT: Tensor, recipe: Recipe, step: int) -> float:
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    with torch.autocast(ids_BT.device.type, torch.bfloat16):
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    loss = _next_token_losses(logits_BTV, ids_BT).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return loss.item()


def _identity(recipe: Recipe, tokens_N: Array) -> dict[str, str]:
    """Return what a state belongs to; the data by its sum of 64-bit products, which any change moves."""
    weights = np.arange(1, len(tokens_N) + 1, dtype=np.uint64)
    mixed = int((weights * tokens_N.astype(np.uint64)).sum(dtype=np.uint64))
    described = json.dumps(dataclasses.asdict(recipe), sort_keys=True)
    return {"recipe": described, "tokens": f"{len(tokens_N)}/{mixed:016x}"}


def _tensors(model: Any, optimizer: Any) -> dict[str, Tensor]:
    found = {}
    for name, weight in model.named_parameters():
        held = optimizer.state[weight]
        found[f"weight/{name}"] = weight.detach()
        found[f"mean/{name}"], found[f"square/{name}"] = held["exp_avg"], held["exp_avg_sq"]
    return found


def _save_state(
    path: Path, model: Any, optimizer: Any, identity: Mapping[str, str], step: int
) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    tensors = {name: value.contiguous() for name, value in _tensors(model, optimizer).items()}
    save_file(tensors, fresh, {**identity, "step": str(step)})
    fresh.replace(path)


def _resume(path: Path, model: Any, optimizer: Any, identity: Mapping[str, str]) -> int:
    """Fill model and optimizer from a state, where there is one, and return the steps it has done."""
    from safetensors import safe_open

    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as held:
        facts = held.metadata()
        step = int(facts.pop("step"))
        if facts != identity:
            raise ModelError(
                f"{path} is the state of another recipe or other texts, {step} steps on: {facts}; asked for: "
                f"{dict(identity)}. Nothing was changed. Give another --out, or the same settings.",
                kind="recipe-differs",
                path=str(path),
            )
        for name, weight in model.named_parameters():
            with torch.no_grad():
                weight.copy_(held.get_tensor(f"weight/{name}"))
            moments = {"exp_avg": f"mean/{name}", "exp_avg_sq": f"square/{name}"}
            optimizer.state[weight] = {
                key: held.get_tensor(stored).to(weight.device) for key, stored in moments.items()
            } | {"step": torch.tensor(float(step))}
    log.info("going on after step %d", step)
    return step


def _reporter(recipe: Recipe, first: int) -> Callable[[int, float], None]:
    began = time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % 50 and step != recipe.steps:
            return
        each = (time.monotonic() - began) / (step - first)
        tokens = recipe.batch * recipe.length / each
        left = (recipe.steps - step) * each / 60
        log.info("step %d: loss %.3f, %.0f tokens/s, %.1f min left", step, loss, tokens, left)

    return report


def _measured(
    model: Any, tokenizer: Any, recipe: Recipe, step: int, held_out: Sequence[str], place: Any
) -> dict[str, Any]:
    model.eval()
    period = min(100, (recipe.length - 1) // 2, len(tokenizer) - USUAL)
    first, second = loss_by_copy(model, len(tokenizer), period=period)
    tokens_N = stream(held_out, tokenizer)
    text = loss_on_text(model, tokens_N, recipe.length) if len(tokens_N) >= recipe.length else None
    log.info("copies of %d random tokens: %.2f, then %.2f nats", period, first, second)
    log.info("held-out text: %s nats a token", text)
    return {
        "recipe": dataclasses.asdict(recipe),
        "steps": step,
        "tokens": step * recipe.batch * recipe.length,
        "loss": {"period": period, "first_copy": first, "second_copy": second, "held_out": text},
        "hardware": hardware_class(place),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _write_model(model: Any, tokenizer: Any, out: Path, summary: Mapping[str, Any]) -> None:
    import copy

    with quiet():
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(str(out))
        tokenizer.save_pretrained(str(out))
    (out / "training.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    usual = Recipe()
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--out", type=Path, required=True, help="folder of the model and its state")
    flags.add_argument("--steps", type=int, default=usual.steps)
    flags.add_argument("--seed", type=int, default=usual.seed)
    flags.add_argument("--threads", type=int, default=None, help="default: torch's own")
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--save-every", type=int, default=200)
    flags.add_argument("--stop-after", type=int, default=None, help="steps; the schedule stays")
    given = flags.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    train(
        Recipe(steps=given.steps, seed=given.seed),
        given.out,
        device=given.device,
        save_every=given.save_every,
        stop_after=given.stop_after,
    )


if __name__ == "__main__":
    main()
