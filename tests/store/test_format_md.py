"""The worked example of store/FORMAT.md against a shard that is really written."""

import re
from importlib.resources import files

import numpy as np
import pytest

from store.checksum import crc32c
from store.layout import ShardLayout
from store.memory import MemoryStorage
from store.schema import DTYPES, Column
from store.shards import ShardWriter, identity
from store.testing.faults import flip

TEXT = (files("store") / "FORMAT.md").read_text("utf-8")


def worked_example():
    """Rows (offset, bytes, what, value) of the table."""
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([^|]+?) \| (?:`([^`]*)`)? ?\|$", TEXT, re.M)
    return [(int(offset), int(size), what, value) for offset, size, what, value in rows]


@pytest.fixture(scope="module")
def shard():
    storage = MemoryStorage()
    who = identity("0123456789abcdef" * 2, "acts", 3, "h", "00112233aabbccdd")
    column = Column.parse("h", "bfloat16[24]")
    writer = ShardWriter(storage.stream("x"), column, who, 1024)
    writer.append(np.arange(600 * 24, dtype=np.uint16).reshape(600, 24))
    writer.finish()
    return storage.get("x")


def mismatches(data):
    found = []
    for offset, size, what, value in worked_example():
        piece = data[offset : offset + size]
        expected = value.encode() if value.startswith("{") else bytes.fromhex(value)
        if what == "zeros":
            expected = bytes(size)
        if what.startswith("chunk"):
            low = int(re.search(r"rows (\d+)", what)[1])
            rows = np.arange(low * 24, min(low + 256, 600) * 24, dtype="<u2").tobytes()
            expected = rows.ljust(size, b"\0")
        if piece != expected:
            found.append(what)
    return found


def test_the_worked_example_is_what_is_written(shard):
    assert mismatches(shard) == []


def test_the_worked_example_covers_every_byte(shard):
    at = 0
    for offset, size, _, _ in worked_example():
        assert offset == at
        at += size
    assert at == len(shard)
    assert len(worked_example()) == 19
    assert f"The file has {at // 1000} {at % 1000} bytes" in TEXT
    assert f"crc32c of the whole is `{crc32c(shard):08x}`" in TEXT


def test_a_wrong_number_would_be_noticed(shard):
    assert mismatches(flip(shard, 16384)) == ["its crc32c"]


def test_the_row_looked_up_in_the_text_is_there(shard):
    layout = ShardLayout(row_bytes=48, rows=600, stride_rows=1024)
    at = layout.offset(300 // 256) + 300 % 256 * 48
    assert (
        f"= {at}, and its first value has the bits {int.from_bytes(shard[at : at + 2], 'little')}"
        in TEXT
    )


def test_every_dtype_is_in_the_table():
    table = TEXT[TEXT.index("### Dtypes") : TEXT.index("### Shards")]
    for name, dtype in DTYPES.items():
        wanted = (
            name if dtype.stored.kind == "f" or name == "bfloat16" else re.sub(r"\d+", "", name)
        )
        assert f"`{wanted}" in table


def test_the_crc_of_the_text_is_ours():
    assert 'crc32c("123456789")` = 0xE3069283' in TEXT
    assert crc32c(b"123456789") == 0xE3069283
