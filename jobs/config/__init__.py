"""One verb, one frozen config; the settings of related verbs share a file."""

from tyro.conf import Positional

from jobs.config.base import Latents, Names, Numbers, Rows, Shares, Verb, Words, to_yaml
from jobs.config.bench import BenchAttention, BenchCodes
from jobs.config.circuits import Stats
from jobs.config.demo import Demo
from jobs.config.dictionaries import Encode, Eval, Train
from jobs.config.export import (
    ExportDictionary,
    ExportDictionaryLearning,
    ExportSaeLens,
    ExportSparsify,
    ExportZarr,
    ImportDictionary,
    ImportDictionaryLearning,
    ImportSaeLens,
    ImportSparsify,
)
from jobs.config.ingest import Ingest, Plan
from jobs.config.placement import Placed
from jobs.config.status import Status
from jobs.config.stores import Inspect, ReportOn, Verify
from jobs.config.tables import Query, Tables
from jobs.config.upkeep import Compact, Doctor, Drop, Gc, Purge, Retire, Tombstone

__all__ = [
    "BenchAttention",
    "BenchCodes",
    "Compact",
    "Demo",
    "Doctor",
    "Drop",
    "Encode",
    "Eval",
    "ExportDictionary",
    "ExportDictionaryLearning",
    "ExportSaeLens",
    "ExportSparsify",
    "ExportZarr",
    "Gc",
    "ImportDictionary",
    "ImportDictionaryLearning",
    "ImportSaeLens",
    "ImportSparsify",
    "Ingest",
    "Inspect",
    "Latents",
    "Names",
    "Numbers",
    "Placed",
    "Plan",
    "Positional",
    "Purge",
    "Query",
    "ReportOn",
    "Retire",
    "Rows",
    "Shares",
    "Stats",
    "Status",
    "Tables",
    "Tombstone",
    "Train",
    "Verb",
    "Verify",
    "Words",
    "to_yaml",
]
