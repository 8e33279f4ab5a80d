"""Which verbs there are: their settings and what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jobs import config as settings
from jobs.verbs import (
    bench,
    bench_codes,
    circuits,
    demo,
    dictionaries,
    export,
    ingest,
    plan,
    status,
    stores,
    tables,
    upkeep,
)
from jobs.verbs.contract import Answer, Context

VERBS: Mapping[str, tuple[Any, Callable[[Any, Context], Answer]]] = {
    "demo": (settings.Demo, demo.demo),
    "plan": (settings.Plan, plan.plan),
    "ingest": (settings.Ingest, ingest.ingest),
    "train": (settings.Train, dictionaries.train),
    "eval": (settings.Eval, dictionaries.evaluate),
    "encode": (settings.Encode, dictionaries.encode),
    "stats": (settings.Stats, circuits.stats),
    "bench attention": (settings.BenchAttention, bench.attention),
    "bench codes": (settings.BenchCodes, bench_codes.codes),
    "query": (settings.Query, tables.query),
    "tables": (settings.Tables, tables.tables),
    "status": (settings.Status, status.status),
    "inspect": (settings.Inspect, stores.inspect),
    "verify": (settings.Verify, stores.verify),
    "export zarr": (settings.ExportZarr, export.zarr),
    "export saelens": (settings.ExportSaeLens, partial(export.dictionary, "saelens")),
    "export dictionary_learning": (
        settings.ExportDictionaryLearning,
        partial(export.dictionary, "dictionary_learning"),
    ),
    "export sparsify": (settings.ExportSparsify, partial(export.dictionary, "sparsify")),
    "import saelens": (settings.ImportSaeLens, partial(export.foreign, "saelens")),
    "import dictionary_learning": (
        settings.ImportDictionaryLearning,
        partial(export.foreign, "dictionary_learning"),
    ),
    "import sparsify": (settings.ImportSparsify, partial(export.foreign, "sparsify")),
    "gc": (settings.Gc, upkeep.gc),
    "drop": (settings.Drop, upkeep.drop),
    "retire": (settings.Retire, upkeep.retire),
    "tombstone": (settings.Tombstone, upkeep.tombstone),
    "purge": (settings.Purge, upkeep.purge),
    "compact": (settings.Compact, upkeep.compact),
    "doctor": (settings.Doctor, upkeep.doctor),
    "report": (settings.ReportOn, stores.report),
}
