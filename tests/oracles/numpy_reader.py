"""A reader written from store/FORMAT.md alone: json, struct, hashlib and NumPy; Parquet and Blosc by functions it is given.

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
STEPS = [np.linspace(0.1, 1, 2**d + 1) for d in range(7)]
MAP = np.concatenate([(e[1:] + e[:-1]) / 2 * 10.0 ** (d - 6) for d, e in enumerate(STEPS)])
MAP = np.sort(np.concatenate([[0, 1], MAP, -MAP])).astype(np.float32)


def _divided(value):
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 * (value & 1))
    return value


CRC_TABLE = [_divided(value) for value in range(256)]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def widened(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values):
    bits = np.ascontiguousarray(values).view(np.uint32)
    return widened((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


class RefusedError(Exception):
    """Something is not as FORMAT.md says."""


def check(condition, what):
    if not condition:
        raise RefusedError(what)


class NumpyReader:
    def __init__(self, root, read_parquet=None, blosc=None):
        self.root, self.read_parquet, self.blosc = Path(root), read_parquet, blosc
        self.id = None
        head = self.record("store.json", "store")
        self.id, self.stride = head["store"], head["part_stride"]
        self.removed = []  # (document, part, seen_parts)
        for path in self.root.glob("tombstones/*"):
            data = path.read_bytes()
            check(hashlib.sha256(data).hexdigest() == path.stem, "tombstone")
            table = read_parquet(data)
            self.removed += zip(table["doc_id"], table["part"], table["seen_parts"], strict=True)

    def record(self, key, kind):
        check((self.root / key).is_file(), f"{key} is gone")
        data = (self.root / key).read_bytes()
        check(data[:1] == b"{" and data[-1:] == b"}" and len(data) <= 16 << 20, f"{key}: form")
        record = json.loads(data.decode(errors="replace"))
        check(canonical(record) == data, f"{key} is not canonical")
        body = {name: value for name, value in record.items() if name != "self"}
        check(hashlib.sha256(canonical(body)).hexdigest() == record.get("self"), f"{key}: hash")
        mine = record["store"] == (self.id or record["store"])
        check((record["v"], record["kind"], mine) == (1, kind, True), f"{key}: kind")
        return record

    def groups(self):
        folders = [path.name for path in (self.root / "groups").iterdir() if path.is_dir()]
        live = sorted(p for p in folders if not (self.root / f"groups/{p}/dropped.json").exists())
        return {name: self.record(f"groups/{name}/group.json", "group") for name in live}

    def parts(self, group):
        """Part number → commit, ascending: the highest n, without retired parts and those behind the seal."""
        found, end = {}, 10**9
        for path in (self.root / f"groups/{group}/commits").glob("*/*.json"):
            match = re.fullmatch(r"(\d{8})\.(\d+)\.json", path.name)
            if match and int(path.parent.name) == int(match[1]) // STRIDE_FOLDER:
                found[int(match[1])] = max(int(match[2]), found.get(int(match[1]), 0))
        ended = [path.parts[-3:] for path in self.root.glob("groups/*/retired/*.json")]
        gone = {int(name[:8]) for holder, _, name in ended if holder in {group, "tokens"}}
        for name in ("tokens", group):
            if (self.root / f"groups/{name}/sealed.json").exists():
                end = self.record(f"groups/{name}/sealed.json", "sealed")["parts"]
        check(end == 10**9 or {*range(end)} <= {*found, *gone}, "a part a seal counts is gone")
        live = sorted(part for part in {*found} - gone if part < end)
        return {part: self.commit(group, part, found[part]) for part in live}

    def commit(self, group, part, n):
        key = f"groups/{group}/commits/{part // STRIDE_FOLDER:06d}/{part:08d}.{n}.json"
        commit = self.record(key, "commit")
        check((commit["group"], commit["part"], commit["n"]) == (group, part, n), "foreign record")
        recipe = self.record(f"groups/{group}/group.json", "group")["recipe"]
        check(hashlib.sha256(canonical(recipe)).hexdigest() == commit["recipe"], "recipe")
        if group != "tokens":
            check(self.parts("tokens")[part]["self"] == commit["tokens"], "other tokens")
        return commit

    def object(self, commit, path):
        (item,) = (item for item in commit["objects"] if item["path"] == path)
        folder = f"groups/{commit['group']}/parts/{commit['part']:08d}/{commit['attempt']}"
        check((self.root / folder / path).is_file(), f"{path} is gone")
        data = (self.root / folder / path).read_bytes()
        check(len(data) == item["size"], f"{path}: size")
        check(crc32c(data)[::-1].hex() == item["crc32c"], f"{path}: crc32c")
        return data

    def shard(self, commit, column, codec, name, shape):
        """The values ``[rows, *shape]`` of one shard, bfloat16 as float32."""
        data = self.object(commit, f"{column}/c/" + "/".join("0" * (1 + len(shape))))
        who = {key: commit[key] for key in ("store", "group", "part", "attempt")}
        text = canonical({**who, "column": column})
        head = b"ACTLAKE1" + struct.pack("<I", len(text)) + text
        check(data[:4096] == (head + crc32c(head)).ljust(4096, b"\0"), f"{column}: foreign shard")
        chunks, slots = -(-commit["rows"] // CHUNK), self.stride // CHUNK
        index = data[-4 - 16 * slots : -4]
        check(data[-4:] == crc32c(index), f"{column}: index")
        check(set(index[16 * chunks :]) <= {255}, "an unused entry is used")
        values, at = [], 4096
        for chunk in range(chunks):
            start, size = struct.unpack_from("<QQ", index, 16 * chunk)
            check(start == at, "chunks lie one behind the other")
            raw, end = data[start : start + size - 4], start + size
            check(crc32c(raw) == data[end - 4 : end], f"{column}: chunk {chunk}")
            at = -(-end // ALIGN) * ALIGN
            check(not any(data[end:at]), "a gap is not zero")
            values.append(self.chunk(raw, codec, name, math.prod(shape)).reshape(CHUNK, *shape))
        return np.concatenate(values)[: commit["rows"]]

    def chunk(self, raw, codec, name, width):
        """The values of a coded chunk."""
        if codec in {"raw", "bitshuffle-zstd"}:
            raw = raw if codec == "raw" else self.blosc(raw)
            values = np.frombuffer(raw, "<u2" if name == "bfloat16" else name)
            return widened(values) if name == "bfloat16" else values
        coded = np.frombuffer(raw, np.uint8).reshape(CHUNK, width + 2 * -(-width // 64))
        code, scale = (np.ascontiguousarray(half) for half in np.split(coded, [width], axis=1))
        steps = code.view(np.int8) / np.float32(127) if codec == "int8" else MAP[code]
        values = steps * np.repeat(widened(scale.view("<u2")), 64, axis=1)[:, :width]
        return rounded(values) if name == "bfloat16" else values.astype(name)

    def partial(self, commit, column):
        """Array name → values of one part's state."""
        data = self.object(commit, f"{column}.partial.safetensors")
        size, found = struct.unpack_from("<Q", data)[0], {}
        for name, entry in json.loads(data[8 : 8 + size]).items():
            low, high = (8 + size + at for at in entry["data_offsets"])
            dtype = f"<{entry['dtype'][0].lower()}{int(entry['dtype'][1:]) // 8}"
            found[name] = np.frombuffer(data[low:high], dtype).reshape(entry["shape"])
        return found

    def kept(self, part):
        """The row ids of a part that may be read: those of sequences that hold no removed document."""
        table = self.read_parquet(self.object(self.parts("tokens")[part], "tokens.parquet"))
        gone = {doc for doc, at, seen in self.removed if at == part or seen <= part}
        hurt = {s for s, d in zip(table["seq_id"], table["doc_id"], strict=True) if d in gone}
        return [r for r, s in zip(table["row"], table["seq_id"], strict=True) if s not in hurt]

    def slots(self, group):
        """Part, commit, the row id of each slot of its shards, and which of them may be read."""
        for part, commit in self.parts(group).items():
            held = part * self.stride + np.arange(commit["rows"])
            if "rows.parquet" in {item["path"] for item in commit["objects"]}:
                held = np.asarray(self.read_parquet(self.object(commit, "rows.parquet"))["row"])
            yield part, commit, held, np.isin(held, self.kept(part))

    def row_ids(self, group):
        """The row ids of a group, in part order."""
        return np.concatenate([held[keep] for _, _, held, keep in self.slots(group)])

    def read(self, group, column):
        """All rows of a dense or scalar column, bfloat16 as float32."""
        declared = self.groups()[group]["columns"][column]
        name, _, inside = declared["spec"].rstrip("]").partition("[")
        shape, found = tuple(int(n) for n in inside.split(",")) if inside else (), []
        for part, commit, _, keep in self.slots(group):
            if math.prod(shape) >= 16:
                found.append(self.shard(commit, column, declared["codec"], name, shape)[keep])
                continue
            path = "tokens.parquet" if group == "tokens" else "scalars.parquet"
            table = self.read_parquet(self.object(commit, path))
            keep = np.isin(table["row"], self.kept(part))
            found.append(np.asarray(table[column])[keep].reshape(-1, *shape))
        return np.concatenate(found)
