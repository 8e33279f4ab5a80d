"""The public names, pinned: a name is added or dropped here, in the same change, or not at all.

To change the list: change the package's ``__all__`` and paste the line the failing test prints.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import types
from pathlib import Path

import pytest

import ingest
import jobs
import store

PUBLIC: dict[str, list[str]] = {
    "ingest": [],
    "ingest.models": [
        "ADAPTERS", "Anatomy", "AttentionSpec", "HookedModel", "LoadedModel", "ModelAdapter",
        "Rotary", "SiteInfo", "Tap", "adapt", "attend", "attention_sites", "bundled",
        "bundled_causal", "check_device", "hardware_class", "load",
        "merge", "provenance", "resolve_dtype", "resolve_sites", "rotate", "scores",
    ],
    "ingest.models.metrics": ["METRICS", "Examples", "Metric", "metric_name"],
    "ingest.models.planted": [
        "PLANTED", "TRUTH_FILE", "PlantedModel", "is_planted", "planted_folder",
    ],
    "ingest.sources": ["SOURCES"],
    "jobs": [],
    "jobs.circuits": ["STATISTICS"],
    "jobs.config": [
        "BenchAttention", "BenchCodes", "Compact", "Demo", "Doctor", "Drop", "Encode", "Eval",
        "ExportDictionary", "ExportDictionaryLearning", "ExportSaeLens", "ExportSparsify", "ExportZarr", "Gc",
        "ImportDictionary", "ImportDictionaryLearning", "ImportSaeLens", "ImportSparsify",
        "Ingest", "Inspect", "Latents", "Names", "Numbers", "Placed", "Plan", "Positional", "Purge",
        "Query", "ReportOn", "Retire", "Rows", "Shares",
        "Stats", "Status", "Tables", "Tombstone",
        "Train", "Verb", "Verify", "Words", "to_yaml",
    ],
    "jobs.demo": ["Outcome", "demo", "source_for"],
    "jobs.dictionaries": ["VARIANTS", "EvalResult", "TrainConfig", "Trained", "evaluate", "train"],
    "jobs.features": [
        "ContextsConfig", "Encoded", "describe_tables", "encode", "frame", "pair_passages", "passage",
        "query", "render_frame", "table_names", "telling", "top_passages",
    ],
    "jobs.interventions": [
        "OPERATIONS", "Intervention", "Runner", "ablate_heads", "head_ablations", "site_means", "site_values",
    ],
    "jobs.kernels": ["EXECUTORS", "PLANNERS", "QKV", "BlockPlan", "Budget", "Tiles"],
    "jobs.report": ["render"],
    "jobs.verbs": ["VERBS", "Answer", "Context"],
    "store": [
        "ActlakeError", "Codes", "ConflictError", "CorruptError", "Coverage", "Document",
        "InvalidInputError", "NotFoundError", "Report", "Store", "StoreError", "TokenSequence",
        "TokensWriter", "UnavailableError", "UnsupportedVersionError", "Window", "Windows",
        "Writer", "create", "open", "verify",
    ],
    "store.codecs": ["CODECS", "Codec"],
}  # fmt: skip


def _packages():
    """Return the dotted names of every package of ours."""
    found = []
    for root in (ingest, jobs, store):
        walked = pkgutil.walk_packages(root.__path__, f"{root.__name__}.")
        found += [root.__name__, *(module.name for module in walked if module.ispkg)]
    return sorted(found)


PACKAGES = _packages()

each_package = pytest.mark.parametrize("name", PACKAGES)


def _public(package):
    return list(getattr(package, "__all__", []))


def _order(name):
    """Constants, then classes, then the rest: the order the linter keeps (RUF022)."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2, name


@each_package
def test_public_names_are_those_pinned(name):
    names = _public(importlib.import_module(name))
    paste = f'    "{name}": {names},'.replace("'", '"')
    assert names == PUBLIC.get(name, []), f"if this is meant, paste into PUBLIC:\n{paste}"


def test_nothing_is_pinned_that_is_gone():
    assert set(PUBLIC) <= set(PACKAGES)


@each_package
def test_public_names_are_sorted_and_all_there(name):
    package = importlib.import_module(name)
    names = _public(package)
    assert names == sorted(set(names), key=_order)
    assert [public for public in names if not hasattr(package, public)] == []


@each_package
def test_a_package_exports_nothing_beside_its_public_names(name):
    package = importlib.import_module(name)
    exported = {
        key
        for key, value in vars(package).items()
        if not key.startswith("_")
        and not (isinstance(value, types.ModuleType) and value.__name__ == f"{name}.{key}")
    }
    assert exported - {"annotations"} == set(_public(package))


@each_package
def test_an_init_file_only_says_what_it_is_and_re_exports(name):
    package = importlib.import_module(name)
    body = ast.parse(Path(inspect.getfile(package)).read_text(encoding="utf-8")).body
    said = ast.get_docstring(ast.Module(body, []))
    assert said
    assert len(said.split()) >= 4, f"{name} does not say what it is: {said!r}"
    kinds = [type(statement).__name__ for statement in body[1:]]
    assert set(kinds) <= {"Import", "ImportFrom", "Assign", "AnnAssign"}
    assert sum(kind in {"Assign", "AnnAssign"} for kind in kinds) <= 1
