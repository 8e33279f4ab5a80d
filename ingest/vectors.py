"""Rows of a source that makes vectors instead of text: their tokens, their columns and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ingest.config import TokensConfig
from ingest.contract import VectorSource
from ingest.errors import IngestError
from ingest.plan import SHARES, split_of
from ingest.writing import Progress
from store import Codes, Document, TokenSequence, TokensWriter
from store import open as open_store
from store.records import canonical, sha256
from store.registry import to_json

VECTOR_CONTEXT = 256
"""Rows of a sequence where nothing is said."""


def vector_rows(config: TokensConfig) -> int:
    """Return how many rows of a source that makes vectors were asked for, or raise ``rows-missing``."""
    if config.rows is None:
        raise IngestError(
            f"source {config.source.kind!r} has no end of its own. Nothing was written. Say --rows N.",
            kind="rows-missing",
        )
    return config.rows


def vector_recipe(config: TokensConfig, source: VectorSource) -> dict[str, Any]:
    """Return the tokens recipe of a source that makes vectors instead of text."""
    return {
        "schema": 1,
        "source": to_json(source),
        "context": config.context or VECTOR_CONTEXT,
        "split": {"seed": config.split_seed, "shares": list(SHARES)},
        "rows": config.rows,
    }


def write_vector_tokens(
    writer: TokensWriter, config: TokensConfig, rows: int, progress: Progress
) -> None:
    """Write the rows of a vector source: sequences of ``context`` rows, each a document of its own."""
    if writer.sealed:
        return
    context = config.context or VECTOR_CONTEXT
    with writer:
        for number in range(writer.position or 0, -(-rows // context)):
            count = min(context, rows - number * context)
            name = f"{config.source.kind}-{number}"
            digest = sha256(canonical([config.source.kind, config.source.seed, number]))
            document = Document(
                doc_id=number,
                name=name,
                sha256=digest,
                split=split_of(digest, config.split_seed),
            )
            sequence = TokenSequence(
                token_ids=np.zeros(count, np.int32),
                spans=[(document, 0, count)],
                split=document.split,
            )
            writer.put([sequence], position=number + 1)
            progress("tokens", number * context + count, rows)
        writer.seal()


class VectorWorker:
    """Writes the parts of a source that makes vectors: its columns, and the planted codes beside them."""

    def __init__(
        self, url: str, group: str, source: VectorSource, recipe: Mapping[str, Any]
    ) -> None:
        self._source = source
        self._store = open_store(url)
        self._writer = self._store.writer(group, columns=source.columns, recipe=recipe)
        self._truth = self._store.writer("truth", columns={"codes": "codes"}, recipe=recipe)

    def run(self, part: int) -> Mapping[str, Any]:
        """Make and write one part."""
        rows = self._store.view.commit("tokens", part).rows
        base = part * self._store.part_stride
        ids = np.arange(base, base + rows)
        row, feature, value = self._source.truth_codes(part, rows)
        # The truth first: a part counts as done by its vectors, and must not lack its truth then.
        self._truth.put(ids, {"codes": Codes(row=base + row, latent=feature, value=value)})
        self._writer.put(ids, self._source.block(part, rows))
        return {"part": part, "rows": rows, "skipped": 0}

    def close(self) -> None:
        """Seal both groups."""
        self._writer.close()
        self._truth.close()
