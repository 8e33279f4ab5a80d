"""What the rows say: codes of dictionaries, telling latents and their passages, SQL."""

from jobs.features.contexts import ContextsConfig, passage, telling, top_passages
from jobs.features.encode import Encoded, encode
from jobs.features.pairs import pair_passages
from jobs.features.query import describe_tables, frame, query, render_frame, table_names

__all__ = [
    "ContextsConfig",
    "Encoded",
    "describe_tables",
    "encode",
    "frame",
    "pair_passages",
    "passage",
    "query",
    "render_frame",
    "table_names",
    "telling",
    "top_passages",
]
