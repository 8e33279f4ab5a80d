"""Models as named sites: load one, resolve site names, capture values, recompute attention."""

from ingest.models.attention import attend, merge, rotate, scores
from ingest.models.contract import (
    ADAPTERS,
    Anatomy,
    AttentionSpec,
    LoadedModel,
    ModelAdapter,
    Rotary,
    SiteInfo,
    Tap,
)
from ingest.models.dtypes import check_device, hardware_class, provenance, resolve_dtype
from ingest.models.files import bundled, bundled_causal
from ingest.models.hooks import HookedModel, adapt
from ingest.models.load import load
from ingest.models.sites import attention_sites, resolve_sites

__all__ = [
    "ADAPTERS",
    "Anatomy",
    "AttentionSpec",
    "HookedModel",
    "LoadedModel",
    "ModelAdapter",
    "Rotary",
    "SiteInfo",
    "Tap",
    "adapt",
    "attend",
    "attention_sites",
    "bundled",
    "bundled_causal",
    "check_device",
    "hardware_class",
    "load",
    "merge",
    "provenance",
    "resolve_dtype",
    "resolve_sites",
    "rotate",
    "scores",
]
