"""Result tables: read by schema, refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.errors import JobError
from jobs.report import tables
from jobs.results import Result

POSITIONS = {
    "position": np.arange(3),
    "relative_error": np.array([0.3, 0.2, 0.1]),
    "rows": np.array([5, 5, 4]),
}


@pytest.fixture
def result(tmp_path):
    with Result.create(tmp_path, "eval", {"a": 1}) as made:
        yield made


def test_a_table_that_is_not_there_is_none(result):
    assert tables.read(result, "curve") is None
    assert tables.evaluation(result) is None
    assert tables.telling_latents(result) == []


@pytest.mark.parametrize("name", tables.SCHEMAS)
def test_an_empty_table_is_read(result, name):
    empty = {"i": np.int64, "f": np.float64, "b": np.bool_}
    result.write_table(
        name,
        {c: np.array([], dtype=empty.get(k, "U1")) if k in empty else []
         for c, k in tables.SCHEMAS[name].items()},
    )  # fmt: skip
    assert set(tables.read(result, name)) == set(tables.SCHEMAS[name])


def test_columns_get_the_schemas_dtypes_and_more_columns_are_no_harm(result):
    narrow = {name: values.astype(np.float32 if values.dtype.kind == "f" else np.int32)
              for name, values in POSITIONS.items()}  # fmt: skip
    result.write_table("positions", {**narrow, "extra": ["x", "y", "z"]})
    read = tables.read(result, "positions")
    assert {str(values.dtype) for values in read.values()} == {"int64", "float64"}
    np.testing.assert_array_equal(read["position"], POSITIONS["position"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": None}, "has no column 'rows'"),
        ({"position": np.array([0.5, 1.0, 2.0])}, "'position' of dtype float64"),
        ({"relative_error": ["a", "b", "c"]}, "'relative_error' of dtype"),
    ],
    ids=["missing", "float for int", "text for float"],
)
def test_a_table_of_another_shape_is_refused_by_name(result, change, said):
    columns = {**POSITIONS, **change}
    result.write_table("positions", {k: v for k, v in columns.items() if v is not None})
    with pytest.raises(JobError, match=f"bad-table: table 'positions' .*{said}"):
        tables.read(result, "positions")


def test_latents_come_best_first_with_passages_in_rank_order(made):
    results, _ = made(latents=4, passages=3)
    latents = tables.telling_latents(results[2])
    assert len(latents) == 4
    assert [latent.score for latent in latents] == sorted(
        (latent.score for latent in latents), reverse=True
    )
    for latent in latents:
        assert [passage.rank for passage in latent.passages] == [0, 1, 2]
        for passage in latent.passages:
            assert sum(token.is_top for token in passage.tokens) == 1
            top = next(token for token in passage.tokens if token.is_top)
            assert top.value == passage.value
    assert len(tables.telling_latents(results[2], limit=2)) == 2


def test_tokens_come_in_order_of_offset(result):
    result.write_table(
        "telling",
        {"latent": np.array([5]), "score": np.ones(1), "density": np.ones(1), "max": np.ones(1),
         "documents": np.array([1])},
    )  # fmt: skip
    result.write_table(
        "contexts",
        {"latent": np.array([5]), "rank": np.array([0]), "value": np.ones(1),
         "row": np.array([9]), "doc_id": np.array([0]), "document": ["d"],
         "position": np.array([2])},
    )  # fmt: skip
    result.write_table(
        "context_tokens",
        {"latent": np.full(3, 5), "rank": np.zeros(3, np.int64), "offset": np.array([1, -1, 0]),
         "text": ["c", "a", "b"], "value": np.zeros(3), "is_top": np.array([False, False, True])},
    )  # fmt: skip
    [latent] = tables.telling_latents(result)
    assert "".join(token.text for token in latent.passages[0].tokens) == "abc"
