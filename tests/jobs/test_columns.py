"""Columns by set and pattern."""

import pytest

from jobs.columns import columns_of
from jobs.errors import JobError


class Store:
    url = "memory://s"
    sites = ("acts:blocks.10.mlp.in", "acts:blocks.2.mlp.in", "acts:blocks.2.mlp.out", "acts:embed")


NAMES = {
    "a name": (["blocks.2.mlp.in"], ["blocks.2.mlp.in"]),
    "a set": (["blocks.{2,10}.mlp.in"], ["blocks.2.mlp.in", "blocks.10.mlp.in"]),
    "sets of sets": (["b.{1,2}.{x,y}"], ["b.1.x", "b.1.y", "b.2.x", "b.2.y"]),
    "a pattern in the order of blocks": (
        ["blocks.*.mlp.in"],
        ["blocks.2.mlp.in", "blocks.10.mlp.in"],
    ),
    "a pattern with a group": (
        ["acts:blocks.2.*"],
        ["acts:blocks.2.mlp.in", "acts:blocks.2.mlp.out"],
    ),
    "each once": (["embed", "embed", "e*"], ["embed"]),
}


@pytest.mark.parametrize("case", NAMES.values(), ids=list(NAMES))
def test_names_stand_for_columns(case):
    given, expected = case
    assert columns_of(Store(), given) == expected


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(JobError, match=r"no-column.*blocks\.\*\.attn\.z.*acts:embed"):
        columns_of(Store(), ["blocks.*.attn.z"])
