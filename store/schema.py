"""Groups, columns and recipes: frozen values, hashed, JSON both ways.

Decides what a record looks like: canonical JSON (UTF-8, sorted keys, no spaces, integers and strings only) that
carries its own sha256. Strictness is the trade: an unknown key is refused as newer rather than ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from store.errors import CorruptError, InvalidInputError, UnsupportedVersionError

FORMAT_VERSION = 1
MAX_RECORD_BYTES = 16 << 20  # a record larger than this is refused before it is parsed

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=-]{0,127}")
_COLUMN = re.compile(r"(?P<dtype>[a-z]+[0-9]*)(\[(?P<shape>[0-9]+(,[0-9]+)*)\])?")
_FILE_ENDINGS = (".parquet", ".json", ".safetensors")
SCALAR_ELEMENTS = 16  # columns of fewer elements a row live in scalars.parquet (format 1, §3)
MAX_ROW_BYTES = 8 << 20  # a chunk of 256 rows stays below 2 GiB, what one read call may return
MAX_DIMENSIONS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class DType:
    """A dtype a column may have: what callers see and what bytes lie in the store."""

    logical: str
    stored: np.dtype[Any]
    fill: Any
    """Zarr fill value, in Zarr's JSON form; what a foreign reader shows for a chunk that is not there."""


DTYPES: dict[str, DType] = {
    "bfloat16": DType(logical="bfloat16", stored=np.dtype("<u2"), fill=0x7FC0),
    **{
        name: DType(logical=name, stored=np.dtype(name), fill="NaN")
        for name in ("float16", "float32", "float64")
    },
    **{
        name: DType(logical=name, stored=np.dtype(name), fill=0)
        for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
    },
}


def check_name(name: str, what: str) -> str:
    """Return ``name`` where it may stand in a key, else raise ``bad-name``."""
    if NAME.fullmatch(name) is None:
        raise InvalidInputError(
            f"{what} {name!r} is not a legal name: letters, digits and _ . @ = - only, at most 128, "
            "not starting with a sign. Nothing was written. Choose another name.",
            kind="bad-name",
        )
    return name


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a group.

    ``kind`` is ``dense`` (Zarr shards), ``scalar`` (Parquet), ``codes`` (Parquet, sparse), ``ragged``
    (Arrow lists) or ``partial`` (one mergeable state a part).
    """

    name: str
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    codec: str = "raw"

    @classmethod
    def parse(cls, name: str, spec: str, *, codec: str = "raw") -> Column:
        """Read ``"bfloat16[4096]"``, ``"float32"``, ``"codes"``, ``"ragged:float32"`` or ``"partial"``."""
        check_name(name, "column")
        if name.endswith(_FILE_ENDINGS) or name in {"row", "scalars"}:
            raise InvalidInputError(
                f"column {name!r} would collide with the files of a part. Nothing was written. "
                "Choose another name.",
                kind="bad-name",
            )
        if spec in {"codes", "partial"}:
            return cls(name=name, kind=spec)
        kind, _, element = spec.rpartition(":")
        match = _COLUMN.fullmatch(element)
        if match is None or match["dtype"] not in DTYPES or kind not in {"", "ragged"}:
            raise InvalidInputError(
                f"column {name!r} is declared {spec!r}; understood are 'bfloat16[4096]', 'float32', "
                f"'codes', 'ragged:float32' and 'partial', with dtypes {', '.join(DTYPES)}. "
                "Nothing was written.",
                kind="bad-column",
            )
        shape = tuple(int(n) for n in match["shape"].split(",")) if match["shape"] else ()
        if kind == "ragged":
            return cls(name=name, kind=kind, dtype=match["dtype"], shape=shape)
        row_bytes = math.prod(shape) * DTYPES[match["dtype"]].stored.itemsize
        if not 0 < row_bytes <= MAX_ROW_BYTES or len(shape) > MAX_DIMENSIONS:
            raise InvalidInputError(
                f"column {name!r} is declared {spec!r}, {row_bytes} bytes a row in {len(shape)} dimensions; "
                f"a row takes 1 to {MAX_ROW_BYTES} bytes in at most {MAX_DIMENSIONS}. Nothing was written. "
                "Split the column.",
                kind="bad-column",
            )
        dense = math.prod(shape) >= SCALAR_ELEMENTS
        return cls(
            name=name,
            kind="dense" if dense else "scalar",
            dtype=match["dtype"],
            shape=shape,
            codec=codec if dense else "raw",
        )

    @property
    def spec(self) -> str:
        """The declaration that ``parse`` reads."""
        if self.kind in {"codes", "partial"}:
            return self.kind
        shape = f"[{','.join(map(str, self.shape))}]" if self.shape else ""
        return ("ragged:" if self.kind == "ragged" else "") + self.dtype + shape

    @property
    def stored(self) -> np.dtype[Any]:
        """Dtype of the stored values; bfloat16 is bits in shards and rounded float32 in tables."""
        return np.dtype(np.float32) if self._widened else DTYPES[self.dtype].stored

    @property
    def _widened(self) -> bool:
        return self.dtype == "bfloat16" and self.kind == "scalar"

    @property
    def bits(self) -> bool:
        """Whether stored values are bfloat16 bits that readers widen."""
        return self.dtype == "bfloat16" and self.kind == "dense"

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of one row."""
        return math.prod(self.shape) * self.stored.itemsize

    def to_json(self) -> dict[str, Any]:
        """Return the form that stands in ``group.json``."""
        return {"spec": self.spec, "codec": self.codec}


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """What ``group.json`` says: the columns written together, and the recipe that makes them again."""

    name: str
    columns: Mapping[str, Column]
    recipe: Mapping[str, Any]
    aligned_to: str | None

    @property
    def recipe_hash(self) -> str:
        """Sha256 of the recipe's canonical JSON."""
        return sha256(canonical(self.recipe))

    @property
    def masked(self) -> bool:
        """Whether the group holds a sample of the rows (packed, with ``rows.parquet``)."""
        return self.recipe.get("mask") is not None

    def to_json(self) -> dict[str, Any]:
        """Return the record's body."""
        return {
            "group": self.name,
            "columns": {name: column.to_json() for name, column in self.columns.items()},
            "recipe": self.recipe,
            "aligned_to": self.aligned_to,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Group:
        """Undo ``to_json``."""
        return cls(
            name=record["group"],
            columns={
                name: Column.parse(name, column["spec"], codec=column["codec"])
                for name, column in record["columns"].items()
            },
            recipe=record["recipe"],
            aligned_to=record["aligned_to"],
        )


# -- canonical JSON and records ----------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Map a value to integers, strings, null, lists and objects; floats to shortest round-trip strings."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return repr(float(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=canonical)
    if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(item) for item in value]
    raise InvalidInputError(
        f"a {type(value).__name__} stands in a recipe or record; JSON takes numbers, strings, lists and "
        "objects. Nothing was written. Convert it first.",
        kind="not-json",
    )


def canonical(value: Any) -> bytes:
    """Return the one UTF-8 JSON text of a value: sorted keys, no spaces, no floats."""
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"a string of a recipe or record holds half a surrogate pair ({error.reason}), which UTF-8 "
            "cannot say. Nothing was written. Mend the string.",
            kind="not-json",
        ) from error


def differences(held: Any, asked: Any, path: str = "") -> list[str]:
    """Return the dotted names of the fields in which two JSON values differ."""
    if isinstance(held, Mapping) and isinstance(asked, Mapping):
        found = []
        for key in sorted({*held, *asked}):
            found += differences(held.get(key), asked.get(key), f"{path}.{key}" if path else key)
        return found
    return (
        []
        if canonical(held) == canonical(asked)
        else [f"{path} ({_brief(held)} → {_brief(asked)})"]
    )


def _brief(value: Any) -> str:
    text = canonical(value).decode()
    return text if len(text) <= 60 else text[:57] + "…"


def sha256(data: bytes) -> str:
    """Return the hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def subseed(root: int, purpose: str, index: int = 0) -> int:
    """Return the seed of one purpose: the first 8 bytes of sha256("root/purpose/index"), big-endian."""
    digest = hashlib.sha256(f"{root}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


_TEXT_OR_NONE = (str, type(None))
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "store": {"part_stride": int, "part_rows": int, "probe": str},
    "group": {"group": str, "columns": dict, "recipe": dict, "aligned_to": _TEXT_OR_NONE},
    "commit": {
        "group": str,
        "part": int,
        "n": int,
        "attempt": str,
        "rows": int,
        "recipe": str,
        "tokens": _TEXT_OR_NONE,
        "objects": list,
        "summary": dict,
        "provenance": dict,
        "position": object,
        "replaces": str,
        "reason": str,
    },
    "sealed": {"group": str, "parts": int, "rows": int},
    "dropped": {"group": str, "reason": str},
    "retired": {"group": str, "part": int, "reason": str},
    "failed": {"group": str, "part": int, "attempt": str, "error": str},
    "pin": {"pin": str, "entries": list, "segments": list},
    "asset": {"files": dict},
}
_OPTIONAL = {"position", "replaces", "reason"}  # of commits; every other key is always there
_HEAD = {"v", "kind", "store", "self"}


def make_record(kind: str, store_id: str, body: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return a record's bytes and its hash (``self``)."""
    record = _plain({**body, "v": FORMAT_VERSION, "kind": kind, "store": store_id})
    unknown = set(record) - set(_FIELDS[kind]) - _HEAD
    assert not unknown, f"record kind {kind} has no key {unknown}"
    digest = sha256(canonical(record))
    data = canonical({**record, "self": digest})
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidInputError(
            f"a {kind} record would take {len(data)} bytes; readers refuse more than {MAX_RECORD_BYTES}. "
            "Nothing was written. Shorten its recipe or provenance (long lists belong into an asset).",
            kind="record-too-large",
        )
    return data, digest


def read_record(data: bytes, kind: str, store_id: str | None, where: str) -> dict[str, Any]:
    """Parse and check a record.

    Raises
    ------
    CorruptError
        Not canonical JSON, or its hash does not fit (``record-damaged``), it belongs to another store or
        place (``foreign-record``), or a value is of the wrong type (``record-invalid``).
    UnsupportedVersionError
        A newer version, an unknown key or an unknown kind of record.
    """
    record = _parse_hashed(data, where)
    if record.get("v") != FORMAT_VERSION or record.get("kind") not in _FIELDS:
        raise UnsupportedVersionError(
            f"{where} is version {record.get('v')!r} kind {record.get('kind')!r}; this actlake reads "
            f"version {FORMAT_VERSION}. Nothing was read or changed. Upgrade actlake.",
            path=where,
        )
    if unknown := sorted(set(record) - set(_FIELDS[record["kind"]]) - _HEAD):
        raise UnsupportedVersionError(
            f"{where} has keys this version does not know: {', '.join(unknown)}. Nothing was read or "
            "changed. Upgrade actlake.",
            path=where,
        )
    if record["kind"] != kind or (store_id is not None and record.get("store") != store_id):
        raise CorruptError(
            f"{where} should be a {kind!r} record of store {store_id}; found kind {record['kind']!r} of "
            f"store {record.get('store')!r}. It was not used. Restore the file that belongs there.",
            kind="foreign-record",
            path=where,
        )
    _check_fields(record, where)
    return record


def _check_fields(record: Mapping[str, Any], where: str) -> None:
    for name, types in _FIELDS[record["kind"]].items():
        if name not in record and name in _OPTIONAL:
            continue
        if not isinstance(record.get(name), types):
            raise CorruptError(
                f"{where} has {name} = {str(record.get(name))[:60]!r}, which is not of the right type. It "
                "was not used. Restore the record that belongs there.",
                kind="record-invalid",
                path=where,
            )


def _parse_hashed(data: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(data) if len(data) <= MAX_RECORD_BYTES else None
        body = {key: value for key, value in record.items() if key != "self"}  # type: ignore[union-attr]
        good = canonical(record) == data and sha256(canonical(body)) == record["self"]  # type: ignore[index]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise CorruptError(
            f"record {where} ({len(data)} bytes; at most {MAX_RECORD_BYTES} are parsed) is damaged: it is not "
            "the canonical JSON its own sha256 names. It was not used and nothing was changed. Restore it "
            "from a copy; `actlake verify` lists all damage.",
            kind="record-damaged",
            path=where,
        )
    return dict(record)  # type: ignore[arg-type]
