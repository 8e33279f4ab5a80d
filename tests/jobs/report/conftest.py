"""Results as the demo makes them, from a seed instead of a model: the same tables, same sizes."""

from __future__ import annotations

import pydoc_data.topics
import re

import numpy as np
import pytest

from jobs.report.page import compose
from jobs.report.tables import SCHEMAS
from jobs.results import Result

SITE = "blocks.3.resid_post"
LATENTS = 4096
WORDS = re.compile(r"\s*\w+|\s*[^\w\s]")


def _train(folder):
    config = {
        "store": str(folder / "store"),
        "site": f"acts:{SITE}",
        "model": "minilm-l6-v2",
        "variant": {"kind": "batch_topk", "latents": LATENTS, "k": 32},
        "batch_rows": 4096,
        "steps": 1200,
    }
    with Result.create(folder, "train", config, store="st-1", pin="ab" * 32, seed=7) as result:
        rng = np.random.default_rng(1)
        step = np.arange(0, 1200, 10)
        fall = np.exp(-step / 160)
        result.write_table(
            "curve",
            {
                "step": step,
                "rows": step * 4096,
                "fvu": 0.17 + 0.8 * fall + rng.normal(0, 0.003, len(step)),
                "l0": 32 + rng.normal(0, 0.4, len(step)),
                "dead": (900 * np.exp(-((step - 500) ** 2) / 9e4)).astype(np.int64),
                "threshold": 0.6 + 0.5 * (1 - fall),
                "rows_per_second": 21_000 + rng.normal(0, 600, len(step)),
                "seconds": step * 4096 / 21_000,
            },
        )
    return result


def _eval(folder):
    config = {"dictionary": "train-1", "site": f"acts:{SITE}", "split": "test"}
    with Result.create(folder, "eval", config, store="st-1", pin="ab" * 32, seed=7) as result:
        rng = np.random.default_rng(2)
        metrics = {
            "fvu": 0.1734, "fvu_all_rows": 0.1512, "l0_mean": 31.8, "l0_p5": 14, "l0_p50": 30,
            "l0_p95": 57, "dead": 37, "dense": 12, "cosine": 0.9134, "shrinkage": 0.957,
            "relative_bias": 1.012, "rows": 20_117, "excluded_share": 0.0082, "latents": LATENTS,
        }  # fmt: skip
        values = np.array(list(metrics.values()), dtype=np.float64)
        result.write_table("summary", {"metric": list(metrics), "value": values})
        density = np.minimum(10 ** rng.normal(-2.6, 0.7, LATENTS), 1)
        density[:37] = 0
        latents = {"latent": np.arange(LATENTS), "density": density, "max": density * 100}
        result.write_table("latents", latents)
        position = np.arange(256)
        error = 0.165 + 0.2 * np.exp(-position / 4) + rng.normal(0, 0.004, 256)
        rows = np.full(256, 80)
        result.write_table(
            "positions", {"position": position, "relative_error": error, "rows": rows}
        )
    return result


def _contexts(folder, latents, passages):
    config = {"dictionary": "train-1", "site": f"acts:{SITE}"}
    names = sorted(pydoc_data.topics.topics)
    with Result.create(folder, "contexts", config, store="st-1", pin="ab" * 32, seed=7) as result:
        rng = np.random.default_rng(3)
        contexts = {name: [] for name in SCHEMAS["contexts"]}
        tokens = {name: [] for name in SCHEMAS["context_tokens"]}
        chosen = rng.choice(LATENTS, latents, replace=False)
        for latent in chosen.tolist():
            for rank in range(passages):
                document = int(rng.integers(len(names)))
                words = WORDS.findall(pydoc_data.topics.topics[names[document]])
                at = int(rng.integers(15, max(len(words) - 15, 16)))
                peak = 9.0 - 0.4 * rank
                row = (latent, rank, peak, 65_536 + at, document, f"topics/{names[document]}", at)
                for column, value in zip(contexts, row, strict=True):
                    contexts[column].append(value)
                for place in range(max(at - 14, 0), min(at + 15, len(words))):
                    offset = place - at
                    near = peak * np.exp(-abs(offset)) if rng.random() < 0.35 else 0.0
                    near = peak if offset == 0 else near
                    row = (latent, rank, offset, words[place], near, offset == 0)
                    for column, value in zip(tokens, row, strict=True):
                        tokens[column].append(value)
        result.write_table("contexts", _typed(contexts))
        result.write_table("context_tokens", _typed(tokens))
        result.write_table(
            "telling",
            {
                "latent": chosen,
                "score": np.linspace(3, 1, latents),
                "density": 10 ** rng.uniform(-4, -1.5, latents),
                "max": np.full(latents, 9.0),
                "documents": rng.integers(3, 60, latents),
            },
        )
    return result


def _heads(folder, text="the"):
    """Return a result about the heads of a model of two layers and four heads."""
    layer, head = np.divmod(np.arange(8), 4)
    with Result.create(folder, "stats", {"site": SITE, "heads": text}, store="st-1") as result:
        result.write_table(
            "heads",
            {"layer": layer, "head": head, "prefix_matching": layer * 0.93,
             "previous_token": np.where(head == 1, np.nan, 0.25), "duplicate_token": layer * 0.0},
        )  # fmt: skip
        result.write_table(
            "attention_sinks",
            {"layer": np.repeat(layer, 2), "head": np.repeat(head, 2),
             "position": np.tile([0, 1], 8), "alpha": np.tile([0.5, 0.9], 8),
             "sink_rate": np.tile([1.0, 0.0], 8)},
        )  # fmt: skip
        one = np.array([1, 1])
        result.write_table(
            "head_passages",
            {"layer": one, "head": one, "rank": np.array([0, 1]), "weight": np.array([0.9, 0.5]),
             "document": [text, "b.py"], "query_position": np.array([40, 9]),
             "key_position": np.array([12, 3])},
        )  # fmt: skip
        result.write_table(
            "head_tokens",
            {"layer": np.ones(6, int), "head": np.ones(6, int), "rank": np.array([0] * 4 + [1] * 2),
             "offset": np.array([-28, -27, -1, 0, -6, 0]), "text": [text, " … ", "\n a", text, "x", "y"],
             "is_query": np.array([0, 0, 0, 1, 0, 1], bool),
             "is_key": np.array([1, 0, 0, 0, 1, 0], bool)},
        )  # fmt: skip
        result.write_table(
            "ablation",
            {"seed": np.array([0, 0, 1, 0, 0]), "what": ["head", "head", "head", "strong", "weak"],
             "layer": np.array([0, 1, 1, -1, -1]), "head": np.array([0, 1, 1, -1, -1]),
             "heads": np.array([1, 1, 1, 4, 4]), "score": np.full(5, 0.5),
             "loss_second_before": np.full(5, 0.25),
             "loss_second_after": np.array([0.24, 2.25, 1.25, 5.25, 0.25]),
             "rise": np.array([-0.01, 2.0, 1.0, 5.0, 0.0])},
        )  # fmt: skip
        result.write_table(
            "layers",
            {"layer": np.arange(2), "median": np.array([0.5, 1.0]), "top1": np.array([60.0, 900.0]),
             "top1_over_median": np.array([120.0, 900.0]), "hits": np.array([0, 7])},
        )  # fmt: skip
        result.write_table(
            "copying", {"layer": layer, "head": head, "copying": np.where(layer, 2.0, -0.5)}
        )
        result.write_table(
            "confirmation",
            {"seed": np.array([0, 1]), "layer": np.array([1, 1]), "head": np.array([1, 1]),
             "score": np.array([0.93, 0.93]), "rise": np.array([2.0, 1.0]),
             "rise_low": np.array([1.5, -0.1]), "rise_high": np.array([2.5, 2.1]),
             "rank": np.array([1, 2]), "weak_rise": np.array([0.01, np.nan]),
             "strong": np.array([4, 4]), "strong_rise": np.array([5.0, 5.0]),
             "confirmed": np.array([1, 0])},
        )  # fmt: skip
    return result


def _typed(columns):
    texts = {"document", "text"}
    return {name: v if name in texts else np.array(v) for name, v in columns.items()}


def _summary(folder):
    rows = 400_000
    shape, size = [384], rows * 384 * 2
    harvest = {"model": "minilm-l6-v2", "sites": [SITE], "batch": [32, 256], "dtype": "bfloat16"}
    source = {"kind": "text", "files": [f"f{i}" for i in range(212)], "sha256": "5e" * 32}
    tokens = [
        {"name": "token_id", "dtype": "int32", "shape": [], "bytes": 801_332},
        {"name": "char_start", "dtype": "int32", "shape": [], "bytes": 1_204_551},
    ]
    groups = [
        {"name": "tokens", "rows": rows, "parts": 25, "sealed": True, "bytes": 4_912_334,
         "columns": tokens,
         "recipe": {"source": source, "context": 256, "packing": False, "split_seed": 0,
                    "shares": [0.9, 0.05, 0.05], "part_rows": 16_384}},
        {"name": "acts", "rows": rows, "parts": 25, "sealed": True, "bytes": size + 25 * 8192,
         "columns": [{"name": SITE, "dtype": "bfloat16", "shape": shape, "bytes": size}],
         "recipe": harvest},
        {"name": "codes", "rows": 371_000, "parts": 23, "sealed": False, "bytes": 98_433_120,
         "columns": [{"name": "codes", "dtype": "codes", "shape": [LATENTS], "bytes": 98_433_120}],
         "recipe": {"dictionary": "9f" * 32}},
    ]  # fmt: skip
    return {
        "url": str(folder / "store"),
        "store": "st-1",
        "pin": "ab" * 32,
        "digest": "cd" * 32,
        "groups": groups,
        "splits": [
            {"split": "train", "documents": 611, "rows": 361_230},
            {"split": "val", "documents": 33, "rows": 18_653},
            {"split": "test", "documents": 36, "rows": 20_117},
        ],
        "verify": {"ok": True, "checked_bytes": 410_553_008, "problems": []},
    }


def _make(folder, latents=10, passages=8):
    results = [_train(folder), _eval(folder), _contexts(folder, latents, passages)]
    return results, _summary(folder)


@pytest.fixture
def made(tmp_path):
    """Return a function that makes ``(results, store summary)`` of a demo in a folder."""

    def make(*, folder=tmp_path, **sizes):
        return _make(folder, **sizes)

    return make


@pytest.fixture
def heads(tmp_path):
    """Return a function that makes a result about heads, its texts as given."""
    return lambda text="the": _heads(tmp_path, text)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a demo, made once for all that only read it."""
    return compose(*_make(tmp_path_factory.mktemp("demo"), latents=10, passages=6))
