import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import InvalidInputError, layout
from store.layout import ALIGN, CHUNK_ROWS, SLOT_BYTES
from store.testing.strategies import names, shard_layouts


@given(shard_layouts(), st.data())
def test_every_row_has_bytes_of_its_own(shard, data):
    def byte_of(row):
        return shard.offset(row // CHUNK_ROWS) + row % CHUNK_ROWS * shard.row_bytes

    def row_of(byte):
        chunk, inside = divmod(byte - SLOT_BYTES, shard.spacing)
        return chunk * CHUNK_ROWS + inside // shard.row_bytes

    row = data.draw(st.integers(0, shard.rows - 1))
    other = data.draw(st.integers(0, shard.rows - 1))
    assert row_of(byte_of(row)) == row_of(byte_of(row) + shard.row_bytes - 1) == row
    if row < other:
        assert byte_of(row) + shard.row_bytes <= byte_of(other)


@given(shard_layouts())
def test_regions_follow_one_another_without_overlap(shard):
    starts = [shard.offset(chunk) for chunk in range(shard.chunks)]
    assert starts[0] == SLOT_BYTES
    assert all(start % ALIGN == 0 for start in starts)
    for start, following in zip(starts, [*starts[1:], shard.index_offset], strict=True):
        assert start + shard.coded_bytes <= following < start + shard.coded_bytes + ALIGN
    assert shard.total_bytes == shard.index_offset + 16 * shard.slots + 4
    assert (shard.chunks - 1) * CHUNK_ROWS < shard.rows <= shard.chunks * CHUNK_ROWS
    assert shard.chunks <= shard.slots


@given(st.integers(0, 10**8 - 1), st.integers(0, 10**4), st.integers(1, 256).map(lambda n: n * 256))
def test_row_ids_and_parts_are_a_bijection(part, row, stride):
    row %= stride
    assert divmod(part * stride + row, stride) == (part, row)


@given(names(), st.integers(0, 10**8 - 1), st.integers(0, 12))
def test_commit_keys_read_back(group, part, n):
    key = layout.commit_key(group, part, n)
    assert list(layout.parse_commit_keys(group, [key])) == [(part, n)]
    assert not list(layout.parse_commit_keys(f"{group}x", [key]))
    assert f"/{part // 4096:06d}/" in key


@pytest.mark.parametrize(
    "name",
    [
        "000000/00000001.json",
        "000000/1.0.json",
        "000000/.tmp-00000001.0.json",
        "000000/00000001.0.json.bak",
        "000000/00000001.00.json",
        "000001/00000001.0.json",
        "00000001.0.json",
        "x",
    ],
)
def test_other_names_are_no_commits(name):
    assert not list(layout.parse_commit_keys("g", [f"groups/g/commits/{name}"]))


@pytest.mark.parametrize(
    ("rows", "stride"),
    [(0, 256), (-256, 256), (100, 256), (256, 300), (512, 256), (256, 0), (256, 2**31)],
)
def test_parts_that_are_no_whole_chunks_are_refused(rows, stride):
    with pytest.raises(InvalidInputError, match="Nothing was written") as caught:
        layout.check_parts(rows, stride)
    assert caught.value.kind == "bad-part-rows"


@pytest.mark.parametrize(
    "path", ["../x", "a/../b", "/etc/passwd", "a//b", "", ".", "a/.b", "a\nb", "a/b/", "~x", "a\\b"]
)
def test_paths_that_leave_the_attempt_are_refused(path):
    with pytest.raises(InvalidInputError) as caught:
        layout.check_object_path(path)
    assert caught.value.kind == "bad-path"


@given(names(), st.integers(1, 8))
def test_shards_of_legal_columns_have_legal_paths(column, dimensions):
    assert layout.check_object_path(layout.shard_path(column, dimensions)).startswith(column)
