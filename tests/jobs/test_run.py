"""Map-merge: one tree over the indices, whatever the order of arrival."""

from dataclasses import dataclass
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.run import OrderedMerge, map_merge
from jobs.runtimes.in_process import InProcess


@dataclass(frozen=True)
class Shape:
    """Remembers how it was merged."""

    text: str

    def merge(self, other):
        return Shape(f"({self.text}{other.text})")


def _merged(arrivals):
    tree = OrderedMerge()
    for index in arrivals:
        tree.add(index, Shape(str(index)))
    return tree.result().text


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_order_of_arrival_merges_the_same_tree(count):
    shapes = {_merged(order) for order in permutations(range(count))}
    assert len(shapes) == 1


def test_the_tree_is_balanced():
    assert _merged(range(4)) == "((01)(23))"
    assert _merged(range(7)) == "(((01)(23))((45)6))"


@given(
    st.lists(st.one_of(st.none(), st.floats(allow_nan=False, width=32)), max_size=40), st.randoms()
)
def test_parts_that_add_nothing_are_left_out(values, random):
    order = list(range(len(values)))
    random.shuffle(order)
    tree = OrderedMerge()
    for index in order:
        tree.add(index, None if values[index] is None else Shape(repr(values[index])))
    found = tree.result()
    kept = [repr(v) for v in values if v is not None]
    assert (found.text.translate({40: None, 41: None}) if found else "") == "".join(kept)


def test_a_part_that_never_arrived_is_noticed():
    tree = OrderedMerge()
    tree.add(1, Shape("1"))
    with pytest.raises(AssertionError, match="index 0"):
        tree.result()


class _Backwards(InProcess):
    def map(self, make_worker, parts):
        return super().map(make_worker, parts[::-1])


class _Worker:
    closed = 0

    def run(self, part):
        return None if part == 5 else Shape(str(part))

    def close(self):
        _Worker.closed += 1


def test_a_runtime_may_answer_in_any_order():
    seen = []
    answers = [
        map_merge(runtime, _Worker, [3, 4, 5, 9], progress=lambda *now: seen.append(now))
        for runtime in (InProcess(), _Backwards())
    ]
    assert answers == [Shape("((34)9)")] * 2
    assert seen[:4] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert _Worker.closed == 2
    assert map_merge(InProcess(), _Worker, []) is None
