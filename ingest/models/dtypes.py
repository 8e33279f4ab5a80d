"""Dtypes by rule, and the facts about a machine that decide a result's bits.

bfloat16 is chosen only where the hardware multiplies it natively; elsewhere it would be emulated,
slower than float32. The facts are provenance: recorded with the rows, never hashed into a recipe.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ingest.errors import ModelError

if TYPE_CHECKING:
    from ingest.models.contract import LoadedModel

DTYPES = ("bfloat16", "float16", "float32")
_NATIVE_BF16 = frozenset({"amx_bf16", "avx512_bf16"})
_CPUINFO = Path("/proc/cpuinfo")


def resolve_dtype(
    dtype: str = "auto", store_dtype: str | None = None, *, device: str | torch.device = "cpu"
) -> tuple[str, str]:
    """Return the dtype to compute in and the dtype to store, as names.

    ``auto`` is bfloat16 for both on GPUs and on CPUs with ``amx_bf16`` or ``avx512_bf16``; else
    float32 is computed and bfloat16 stored. A dtype given is used for both, unless
    ``store_dtype`` says otherwise.

    Raises
    ------
    ModelError
        ``unknown-dtype``.
    """
    for name in (dtype, store_dtype):
        if name not in (*DTYPES, "auto", None):
            raise ModelError(
                f"dtype {name!r} was asked for; known: auto, {', '.join(DTYPES)}. Nothing was "
                "loaded.",
                kind="unknown-dtype",
            )
    stored = None if store_dtype == "auto" else store_dtype
    if dtype != "auto":
        return dtype, stored or dtype
    return "bfloat16" if multiplies_bfloat16(device) else "float32", stored or "bfloat16"


def multiplies_bfloat16(device: str | torch.device = "cpu") -> bool:
    """Return whether a device multiplies bfloat16 itself: GPUs, and CPUs with ``amx_bf16`` or ``avx512_bf16``.

    Elsewhere torch emulates it: 90 times slower than float32 on a CPU with AVX2 (torch 2.13, 2048 x 2048 x 512).
    """
    return torch.device(device).type != "cpu" or bool(_cpu_flags() & _NATIVE_BF16)


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that is there: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    ModelError
        ``missing-device``.
    """
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")
    there = torch.cuda.device_count()
    if place.type == "cpu" or (place.type == "cuda" and (place.index or 0) < there):
        return place
    raise ModelError(
        f"device {str(device)!r} was asked for; here are cpu and {there} CUDA devices. Nothing was loaded. Use "
        "--device cpu, or run where the device is.",
        kind="missing-device",
    )


def provenance(loaded: LoadedModel) -> dict[str, str | int]:
    """Return what besides the recipe decides the bits of captured values.

    ``hardware`` (its class: two machines with equal strings give equal bits at equal threads),
    ``threads``, ``attention`` implementation, versions of ``torch`` and ``transformers``.
    """
    import transformers

    device = next(loaded.model.parameters()).device
    return {
        "hardware": hardware_class(device),
        "threads": torch.get_num_threads(),
        "attention": loaded.attn_implementation,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def hardware_class(device: str | torch.device = "cpu") -> str:
    """Return a short name of the device's kind: ``cpu x86_64 AMD EPYC AVX512 avx512_bf16``."""
    place = torch.device(device)
    if place.type == "cuda":
        major, minor = torch.cuda.get_device_capability(place)
        return f"cuda {torch.cuda.get_device_name(place)} sm_{major}{minor}"
    if place.type != "cpu":
        return f"{place.type} {platform.machine()}"
    parts = [
        "cpu",
        platform.machine(),
        _cpu_model(),
        str(torch.backends.cpu.get_cpu_capability()),
        *sorted(_cpu_flags() & _NATIVE_BF16),
    ]
    return " ".join(part for part in parts if part)


def _cpu_model() -> str:
    return _cpu_fields().get("model name", platform.processor())


def _cpu_flags() -> frozenset[str]:
    return frozenset(_cpu_fields().get("flags", "").split())


@functools.cache
def _cpu_fields() -> dict[str, str]:
    """Return the first processor's fields; none where the system does not tell (macOS)."""
    if not _CPUINFO.is_file():
        return {}
    first = _CPUINFO.read_text(encoding="utf-8").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
