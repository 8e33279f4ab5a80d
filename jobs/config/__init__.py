"""One verb, one frozen config; the settings of related verbs share a file."""

from tyro.conf import Positional

from jobs.config.base import Latents, Names, Numbers, Rows, Verb, Words, to_yaml
from jobs.config.demo import Demo
from jobs.config.dictionaries import Encode, Eval, Train
from jobs.config.ingest import Ingest
from jobs.config.stores import Inspect, ReportOn, Verify
from jobs.config.tables import Query, Tables

__all__ = [
    "Demo",
    "Encode",
    "Eval",
    "Ingest",
    "Inspect",
    "Latents",
    "Names",
    "Numbers",
    "Positional",
    "Query",
    "ReportOn",
    "Rows",
    "Tables",
    "Train",
    "Verb",
    "Verify",
    "Words",
    "to_yaml",
]
