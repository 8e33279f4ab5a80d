"""Makes the golden stores of the present format: ``python tests/golden/make_golden.py``.

A golden store is made once, when a format is released, and never again: ids and attempts are random, so a store made
today is not the one in the repository. A folder that is there is left alone.
"""

import json
import sys
from pathlib import Path

import numpy as np

import store
from store.compact import compact
from store.purge import add_tombstone, purge
from store.records import FORMAT_VERSION, canonical, sha256
from store.testing.faults import flip
from store.testing.small import codes_of, fill, sequences_of, state_of, values_of, words

HERE = Path(__file__).parent / f"format-{FORMAT_VERSION}"
LENGTHS = (100, 120, 80, 90)
DENSE = {"h": "bfloat16[16]", "f": "float32[4,4]", "i": "int8[16]"}
SCALARS = {"loss": "float32", "triple": "bfloat16[3]"}
WINDOWS = {"seed": 5, "epoch": 1, "window_rows": 256, "where": [["flags", "lacks", 1]]}


def tokens(path, lengths):
    made = store.create(path, part_rows=512, part_stride=512)
    with made.writer("tokens", recipe={"by": "make_golden"}) as writer:
        for number, sequence in enumerate(sequences_of(lengths)):
            writer.put([sequence], position=number + 1)
            if number == 2:
                writer.flush()
        writer.seal()
    return made.refresh()


def good(path):
    """Every kind of column, a masked group, a pin and an asset; parts of two chunks and of one."""
    made = fill(fill(tokens(path, LENGTHS), "acts", DENSE), "labels", SCALARS)
    ids = made.row_ids()
    with made.writer("codes", columns={"codes": "codes"}, recipe={"by": "make_golden"}) as writer:
        writer.put(ids, {"codes": codes_of(ids)})
    kept = ids[words(ids, 1, 3)[:, 0] % np.uint64(3) == 0]
    recipe = {"columns": {"h": "bfloat16[16]"}, "recipe": {"by": "make_golden"}, "masked": True}
    with made.writer("sample", **recipe) as writer:
        writer.put(kept, {"h": values_of(kept, writer.group.columns["h"])})
    made = made.refresh()
    asset = made.put_asset({"notes.txt": b"a golden asset"})
    order = [window.row_ids for window in made.windows(["acts:h"], **WINDOWS)]
    return {
        "id": made.id,
        "pin": made.pin(),
        "asset": asset,
        "digest": made.digest(),
        "rows": len(ids),
        "windows": WINDOWS,
        "order": sha256(np.concatenate(order).astype("<i8").tobytes()),
        "columns": {
            name: sha256(np.ascontiguousarray(made.read(name)).tobytes())
            for name in [*(f"acts:{n}" for n in DENSE), *SCALARS, "sample:h", "token_id"]
        },
    }


def states(path):
    """A group of two partial columns, one of them of no arrays."""
    made = tokens(path, (9, 9))
    columns = {"state": "partial", "none": "partial"}
    with made.writer("stat", columns=columns, recipe={"by": "make_golden"}) as writer:
        for part in made.view.parts("tokens"):
            writer.put_partial(part, {"state": state_of(part), "none": {}})
    return {"id": made.id, "digest": made.refresh().digest()}


def codecs(path):
    """A column of each codec, of two dtypes."""
    made = tokens(path, LENGTHS[:1])
    columns = {"h": "bfloat16[70]", "f": "float32[16]"}
    for codec in ("bitshuffle-zstd", "int8", "dynamic8"):
        name = codec.partition("-")[0]
        with made.writer(name, columns=columns, recipe={"by": codec}, codec=codec) as writer:
            for part in made.view.parts("tokens"):
                ids = part * 512 + np.arange(made.view.commit("tokens", part).rows)
                writer.put(ids, {c.name: values_of(ids, c) for c in writer.group.columns.values()})
    return columns_of(made.refresh())


def removed(path):
    """One document was purged, another one is marked as removed; a part was retired; tables are indexed."""
    made = fill(fill(tokens(path, LENGTHS), "acts", {"h": "bfloat16[16]"}), "labels", SCALARS)
    ids = made.row_ids()
    with made.writer("codes", columns={"codes": "codes"}, recipe={"by": "make_golden"}) as writer:
        writer.put(ids, {"codes": codes_of(ids)})
    add_tombstone(made.refresh(), [1], "asked to")
    purge(made.live(), "asked to")
    compact(made.live())
    add_tombstone(made.live(), [3], "asked to")
    return columns_of(made.live())


def columns_of(made):
    """What a store says: rows and columns as hashes."""
    return {
        "id": made.id,
        "digest": made.digest(),
        "rows": len(made.row_ids()),
        "columns": {
            f"{name}:{column}": sha256(
                np.ascontiguousarray(made.read(f"{name}:{column}")).tobytes()
            )
            for name, group in made.groups.items()
            for column, declared in group.columns.items()
            if declared.kind in {"dense", "scalar"}
        },
    }


def flipped(path):
    """One bit of one chunk is turned over; everything else is sound."""
    fill(tokens(path, LENGTHS[:1]), "acts", {"h": "bfloat16[16]"})
    (shard,) = path.glob("groups/acts/parts/00000000/*/h/c/0/0")
    shard.write_bytes(flip(shard.read_bytes(), 4096 + 1234, 3))
    return {
        "kind": "chunk-damaged",
        "where": {"group": "acts", "part": 0, "column": "h", "chunk": 0},
    }


def newer(path):
    """The store record is of version 2."""
    body = {
        "kind": "store",
        "part_rows": 512,
        "part_stride": 512,
        "probe": "",
        "store": "0" * 32,
        "v": 2,
    }
    path.mkdir(parents=True)
    (path / "store.json").write_bytes(canonical({**body, "self": sha256(canonical(body))}))
    return {"kind": "unsupported-version"}


def main():
    for make in (good, states, codecs, removed, flipped, newer):
        path = HERE / make.__name__
        if path.exists():
            sys.stdout.write(f"{path} is there and stays\n")
            continue
        expected = make(path)
        (HERE / f"{make.__name__}.json").write_text(
            json.dumps(expected, indent=1, sort_keys=True) + "\n"
        )


if __name__ == "__main__":
    main()
