"""A reader written from store/FORMAT.md alone: json, struct, hashlib and NumPy; Parquet by a function it is given.

Slow and obviously right. It shares no code with the package, so that both can only agree by the format.
"""

import hashlib
import json
import math
import re
import struct
from pathlib import Path

import numpy as np

CHUNK, ALIGN, STRIDE_FOLDER = 256, 4096, 4096


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = _table()


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class RefusedError(Exception):
    """Something is not as FORMAT.md says."""


def check(condition, what):
    if not condition:
        raise RefusedError(what)


class NumpyReader:
    def __init__(self, root, read_parquet=None):
        self.root, self.read_parquet = Path(root), read_parquet
        head = json.loads((self.root / "store.json").read_bytes())
        self.id, self.stride = head["store"], head["part_stride"]
        self.record("store.json", "store")
        check(not list(self.root.glob("tombstones/*")), "tombstones")

    # -- records

    def record(self, key, kind):
        data = (self.root / key).read_bytes()
        check(len(data) <= 16 << 20, "oversize record")
        record = json.loads(data)
        check(canonical(record) == data, f"{key} is not canonical")
        body = {name: value for name, value in record.items() if name != "self"}
        check(hashlib.sha256(canonical(body)).hexdigest() == record["self"], f"{key}: hash")
        check((record["v"], record["kind"], record["store"]) == (1, kind, self.id), f"{key}: kind")
        return record

    def groups(self):
        folders = [path for path in (self.root / "groups").iterdir() if path.is_dir()]
        live = [p.name for p in folders if not (p / "dropped.json").exists()]
        return {name: self.record(f"groups/{name}/group.json", "group") for name in sorted(live)}

    def sealed(self, group):
        if not (self.root / f"groups/{group}/sealed.json").exists():
            return None
        return self.record(f"groups/{group}/sealed.json", "sealed")

    def parts(self, group):
        """Part number → commit, ascending: the highest n, without retired parts and those behind the seal."""
        found = {}
        for path in (self.root / f"groups/{group}/commits").glob("*/*.json"):
            match = re.fullmatch(r"(\d{8})\.(\d+)\.json", path.name)
            if match and int(path.parent.name) == int(match[1]) // STRIDE_FOLDER:
                part, n = int(match[1]), int(match[2])
                found[part] = max(n, found.get(part, 0))
        for holder in {group, "tokens"}:
            for path in (self.root / f"groups/{holder}/retired").glob("*.json"):
                found.pop(int(path.stem), None)
        end = self.sealed("tokens")
        return {
            part: self.commit(group, part, n)
            for part, n in sorted(found.items())
            if end is None or part < end["parts"]
        }

    def commit(self, group, part, n=0):
        key = f"groups/{group}/commits/{part // STRIDE_FOLDER:06d}/{part:08d}.{n}.json"
        commit = self.record(key, "commit")
        check((commit["group"], commit["part"], commit["n"]) == (group, part, n), "foreign record")
        recipe = self.record(f"groups/{group}/group.json", "group")["recipe"]
        check(hashlib.sha256(canonical(recipe)).hexdigest() == commit["recipe"], "recipe")
        if group != "tokens":
            check(self.commit("tokens", part)["self"] == commit["tokens"], "other tokens")
        return commit

    # -- objects

    def object(self, commit, path):
        (item,) = (item for item in commit["objects"] if item["path"] == path)
        folder = f"groups/{commit['group']}/parts/{commit['part']:08d}/{commit['attempt']}"
        data = (self.root / folder / path).read_bytes()
        check(len(data) == item["size"], f"{path}: size")
        check(f"{crc32c(data):08x}" == item["crc32c"], f"{path}: crc32c")
        return data

    def shard(self, commit, column, dtype, shape):
        """The stored values ``[rows, *shape]`` of one shard."""
        data = self.object(commit, f"{column}/c/" + "/".join("0" * (1 + len(shape))))
        who = {key: commit[key] for key in ("store", "group", "part", "attempt")}
        text = canonical({**who, "column": column})
        head = b"ACTLAKE1" + struct.pack("<I", len(text)) + text
        slot = (head + struct.pack("<I", crc32c(head))).ljust(4096, b"\0")
        check(data[:4096] == slot, f"{column}: another shard's identity")
        chunk_bytes = CHUNK * dtype.itemsize * math.prod(shape)
        spacing = -(-(chunk_bytes + 4) // ALIGN) * ALIGN
        chunks, slots = -(-commit["rows"] // CHUNK), self.stride // CHUNK
        at = 4096 + chunks * spacing
        index = data[at : at + 16 * slots]
        check(data[at + 16 * slots :] == struct.pack("<I", crc32c(index)), f"{column}: index")
        values = []
        for chunk in range(slots):
            start, size = struct.unpack_from("<QQ", index, 16 * chunk)
            if chunk >= chunks:
                check(start == size == 2**64 - 1, "an unused entry is used")
                continue
            check((start, size) == (4096 + chunk * spacing, chunk_bytes + 4), "index entry")
            raw, crc = data[start : start + chunk_bytes], data[start + chunk_bytes : start + size]
            check(struct.pack("<I", crc32c(raw)) == crc, f"{column}: chunk {chunk}")
            check(not any(data[start + size : start + spacing]), "a gap is not zero")
            values.append(np.frombuffer(raw, dtype).reshape(CHUNK, *shape))
        return np.concatenate(values)[: commit["rows"]]

    def table(self, commit, path):
        return self.read_parquet(self.object(commit, path))

    def partial(self, commit, column):
        """Array name → values of one part's state."""
        data = self.object(commit, f"{column}.partial.safetensors")
        (size,) = struct.unpack_from("<Q", data)
        found = {}
        for name, entry in json.loads(data[8 : 8 + size]).items():
            low, high = (8 + size + at for at in entry["data_offsets"])
            kind = {"F": "<f", "I": "<i", "U": "<u"}[entry["dtype"][0]]
            dtype = np.dtype(f"{kind}{int(entry['dtype'][1:]) // 8}")
            found[name] = np.frombuffer(data[low:high], dtype).reshape(entry["shape"])
        return found

    # -- columns

    def row_ids(self, group):
        """The row ids of a group, in part order."""
        found = []
        for part, commit in self.parts(group).items():
            if "rows.parquet" in {item["path"] for item in commit["objects"]}:
                found.append(np.asarray(self.table(commit, "rows.parquet")["row"]))
            else:
                found.append(part * self.stride + np.arange(commit["rows"]))
        return np.concatenate(found)

    def read(self, group, column):
        """All rows of a dense or scalar column, bfloat16 as float32."""
        spec = self.groups()[group]["columns"][column]["spec"]
        name, _, inside = spec.rstrip("]").partition("[")
        shape = tuple(int(n) for n in inside.split(",")) if inside else ()
        dense = math.prod(shape) >= 16
        found = []
        for commit in self.parts(group).values():
            if not dense:
                path = "tokens.parquet" if group == "tokens" else "scalars.parquet"
                found.append(np.asarray(self.table(commit, path)[column]).reshape(-1, *shape))
                continue
            stored = np.dtype("<u2" if name == "bfloat16" else name)
            values = self.shard(commit, column, stored, shape)
            if name == "bfloat16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            found.append(values)
        return np.concatenate(found)
