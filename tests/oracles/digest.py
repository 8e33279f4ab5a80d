"""The digest, written from store/FORMAT.md §7 on top of the NumPy reader."""

import hashlib
import json
import math

import numpy as np

TABLES = ("tokens", "sequences", "documents", "scalars", "codes", "rows")


def numbers(values, kind):
    return np.ascontiguousarray(values, np.dtype(kind).newbyteorder("<")).tobytes()


def column_hash(values, kind):
    """``values`` is a list (None: null); ``kind`` a NumPy name, ``string`` or ``list[n] of …``."""
    nulls = np.array([value is None for value in values], bool)
    data = f"{kind} {len(values)}\n".encode() + np.packbits(nulls).tobytes()
    if kind == "string":
        texts = [(value or "").encode() for value in values]
        data += numbers([len(text) for text in texts], "int64") + b"".join(texts)
    elif kind.startswith("list["):
        flat = [x for value in values for x in value]
        data += numbers(flat, kind.partition(" of ")[2])
    else:
        data += numbers([0 if value is None else value for value in values], kind)
    return hashlib.sha256(data).hexdigest()


def state_hash(state):
    total = hashlib.sha256()
    for name, values in sorted(state.items()):
        head = [name, values.dtype.name, list(values.shape)]
        total.update(json.dumps(head, separators=(",", ":")).encode() + b"\n")
        total.update(numbers(values, values.dtype.name))
    return total.hexdigest()


def column_line(reader, commit, column, spec, codec):
    """The name and hash of a column that lies in no table."""
    if spec == "partial":
        return [(column, state_hash(reader.partial(commit, column)))]
    name, _, inside = spec.rstrip("]").partition("[")
    shape = tuple(int(n) for n in inside.split(",")) if inside else ()
    if spec == "codes" or math.prod(shape) < 16:
        return []
    values = reader.shard(commit, column, codec, name, shape)
    if name == "bfloat16":
        values = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype("<u2")
    data = f"{spec} {commit['rows']}\n".encode() + values.tobytes()
    return [(column, hashlib.sha256(data).hexdigest())]


def digest(reader, typed_columns, names=None):
    """``typed_columns(bytes)`` yields (name, type as above, list of values) of a Parquet file."""
    total = hashlib.sha256()
    for group, declared in sorted(reader.groups().items()):
        if names is not None and group not in names:
            continue
        recipe = json.dumps(
            declared["recipe"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
        for part, commit in reader.parts(group).items():
            found = []
            for item in commit["objects"]:
                name, _, ending = item["path"].partition(".")
                if ending == "parquet" and name in TABLES:
                    for column, kind, values in typed_columns(reader.object(commit, item["path"])):
                        found.append((f"{item['path']}:{column}", column_hash(values, kind)))
            for column, entry in declared["columns"].items():
                found += column_line(reader, commit, column, entry["spec"], entry["codec"])
            for column, value in sorted(found):
                line = [group, hashlib.sha256(recipe).hexdigest(), part, column, commit["rows"]]
                text = json.dumps([*line, value], separators=(",", ":"), ensure_ascii=False)
                total.update(text.encode() + b"\n")
    return total.hexdigest()
