"""How rows become files of an index: cut by parts, rows and bytes; regrouped; counted. Pure functions, no store."""

import numpy as np

from store.compact import _Counts, _regrouped, cut
from store.values import Codes


class Item:
    def __init__(self, rows, size):
        self.rows, self.size = rows, size


class Part:
    def __init__(self, part, rows, size=1000):
        self.part, self.objects = part, {"t": Item(rows, size)}


def numbers(files):
    return [[commit.part for commit in file] for file in files]


def test_files_are_cut_by_part_numbers_rows_and_bytes(monkeypatch):
    monkeypatch.setattr("store.compact.FILE_PARTS", 4)
    monkeypatch.setattr("store.compact.FILE_ROWS", 100)
    monkeypatch.setattr("store.compact.FILE_BYTES", 10_000)
    assert numbers(cut([Part(p, 10) for p in range(9)], "t")) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert numbers(cut([Part(p, 40) for p in range(4)], "t")) == [[0, 1], [2, 3]]
    assert numbers(cut([Part(p, 1, 4000) for p in range(4)], "t")) == [[0, 1], [2, 3]]
    assert numbers(cut([Part(p, 51) for p in range(4)], "t")) == []
    assert numbers(cut([Part(0, 1), Part(1, 99), Part(2, 1)], "t")) == [[0, 2]]
    assert numbers(cut([Part(0, 1), Part(5, 1), Part(9, 1)], "t")) == []
    assert numbers(cut([Part(p, 0) for p in (1, 3, 5, 6)], "t")) == [[1, 3], [5, 6]]


def codes(latents):
    latent = np.array(latents, np.uint32)
    return Codes(row=np.arange(len(latent)), latent=latent, value=np.ones(len(latent), np.float32))


def test_blocks_are_regrouped_and_latents_counted_across_them():
    blocks = [codes([1, 1]), codes([]), codes([1, 2, 2, 2, 2, 5]), codes([5])]
    found = list(_regrouped(iter(blocks), 4))
    assert [piece.latent.tolist() for piece in found] == [[1, 1, 1, 2], [2, 2, 2, 5], [5]]
    counts = _Counts()
    for piece in found:
        counts.add(piece.latent)
    columns = counts.columns()
    assert (columns["latent"].tolist(), columns["codes"].tolist()) == ([1, 2, 5], [3, 4, 2])
    assert _Counts().columns()["codes"].tolist() == []
