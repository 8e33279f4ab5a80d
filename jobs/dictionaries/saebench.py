"""An evaluation as SAEBench writes its own: the file of its ``core`` metrics, for its tables and plots to read.

Names and nesting are SAEBench's (2503.09532; ``evals/core``), figures ours: explained variance is 1 − FVU over all rows that
count, ``mse`` is per value. It has no place for what is not of single rows, so its list of latents
stays empty; our table ``latents`` has them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np

from jobs.codebook import Codebook
from jobs.dictionaries.evaluate import EvalResult
from jobs.run_card import RunCard

FILE = "saebench_core_eval_results.json"
NEEDED = ("ce", "ce_sae", "ce_zero", "kl_sae", "kl_zero", "ce_recovered_zero")
"""Figures of suite behaviour without which there is no such file."""

Array = np.ndarray[Any, np.dtype[Any]]


def core_file(
    found: EvalResult, more: Mapping[str, float], book: Codebook, card: RunCard, model: str
) -> bytes | None:
    """Return the file, or None where suite behaviour did not run, for SAEBench's has no gaps.

    Parameters
    ----------
    found
        Reconstruction and sparsity.
    more
        Figures of suites.
    card
        The evaluation's run card: when, on what.
    model
        What the model is called.
    """
    if not set(NEEDED) <= set(more):
        return None
    millis = int(datetime.fromisoformat(card.started).timestamp() * 1000)
    site = book.meta.get("site")
    record = {
        "eval_type_id": "core",
        "eval_config": _config(model, more),
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{card.store} {card.config} {book.sha}")),
        "datetime_epoch_millis": millis,
        "eval_result_metrics": _metrics(found, more, book),
        "eval_result_details": [],
        "sae_bench_commit_hash": "written by actlake",
        "sae_lens_id": book.sha[:12],
        "sae_lens_release_id": "actlake",
        "sae_lens_version": None,
        "sae_cfg_dict": {
            "architecture": str(book.meta.get("variant", "unknown")),
            "d_in": book.width,
            "d_sae": book.latents,
            "hook_name": site if isinstance(site, str) else None,
            "model_name": model,
        },
        "eval_result_unstructured": {},
    }
    return json.dumps(_plain(record), indent=2, allow_nan=False).encode()


def _config(model: str, more: Mapping[str, float]) -> dict[str, Any]:
    return {
        "model_name": model,
        "n_eval_reconstruction_batches": 1,
        "batch_size_prompts": int(more["behaviour_sequences"]),
        "compute_kl": True,
        "compute_ce_loss": True,
        "compute_l2_norms": True,
        "compute_sparsity_metrics": True,
        "compute_variance_metrics": True,
        "compute_featurewise_density_statistics": False,
        "compute_featurewise_weight_based_metrics": False,
        "exclude_special_tokens_from_reconstruction": True,
    }


def _metrics(found: EvalResult, more: Mapping[str, float], book: Codebook) -> dict[str, Any]:
    kl_zero, kl_sae = more["kl_zero"], more["kl_sae"]
    return {
        "model_behavior_preservation": {
            "kl_div_score": (kl_zero - kl_sae) / kl_zero if kl_zero else np.nan,
            "kl_div_with_ablation": kl_zero,
            "kl_div_with_sae": kl_sae,
        },
        "model_performance_preservation": {
            "ce_loss_score": more["ce_recovered_zero"],
            "ce_loss_with_ablation": more["ce_zero"],
            "ce_loss_with_sae": more["ce_sae"],
            "ce_loss_without_sae": more["ce"],
        },
        "reconstruction_quality": {
            "explained_variance": 1 - found.fvu,
            "explained_variance_legacy": found.row_explained,
            "mse": found.mse,
            "cossim": found.cosine,
        },
        "shrinkage": {
            "l2_norm_in": found.norm_in,
            "l2_norm_out": found.norm_out,
            "l2_ratio": found.shrinkage,
            "relative_reconstruction_bias": 1 / (found.relative_bias or np.nan),
        },
        "sparsity": {"l0": found.l0, "l1": found.l1},
        "token_stats": {
            "total_tokens_eval_reconstruction": int(more["behaviour_tokens"]),
            "total_tokens_eval_sparsity_variance": found.rows,
        },
        "misc_metrics": _misc(found.fired / max(found.rows, 1), book),
    }


def _misc(density_L: Array, book: Codebook) -> dict[str, float]:
    total = float(density_L.sum()) or 1.0
    over = {percent: density_L > percent / 100 for percent in (1, 10)}
    return {
        **{f"freq_over_{p}_percent": float(mask.mean()) for p, mask in over.items()},
        **{
            f"normalized_freq_over_{p}_percent": float(density_L[mask].sum()) / total
            for p, mask in over.items()
        },
        "average_max_encoder_cosine_sim": _mean_nearest(book.W_enc_DL.t().numpy()),
        "average_max_decoder_cosine_sim": _mean_nearest(book.W_dec_LD.numpy()),
        "frac_alive": float((density_L > 0).mean()),
    }


def _mean_nearest(rows_LD: Array, block: int = 1024) -> float:
    """Return the mean over rows of the cosine with the nearest other row."""
    norm_L1 = np.linalg.norm(rows_LD, axis=1, keepdims=True)
    unit_LD = rows_LD / np.where(norm_L1 > 0, norm_L1, 1)
    total = 0.0
    for low in range(0, len(unit_LD), block):
        cosine = unit_LD[low : low + block] @ unit_LD.T
        cosine[np.arange(len(cosine)), np.arange(low, low + len(cosine))] = -np.inf
        total += float(cosine.max(axis=1).sum())
    return total / len(unit_LD)


def _plain(value: Any) -> Any:
    """Return JSON values: what is not finite becomes null."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
