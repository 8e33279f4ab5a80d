"""Records: canonical JSON (UTF-8, sorted keys, no spaces, integers and strings only) that carries its own sha256.

Strictness is the trade: an unknown key is refused as newer rather than ignored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from store.errors import CorruptError, InvalidInputError, UnsupportedVersionError
from store.storage import Storage

FORMAT_VERSION = 1
MAX_DEPTH = 128
_STRING = re.compile(
    rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL
)  # possessive: one that does not end costs no second try
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
MAX_RECORD_BYTES = 16 << 20  # a record larger than this is refused before it is parsed


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
    text = _dumps(_plain(value))
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"a string of a recipe or record holds half a surrogate pair ({error.reason}), which UTF-8 "
            "cannot say. Nothing was written. Mend the string.",
            kind="not-json",
        ) from error


_dumps = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


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
        "purged": int,
        "without": list,
    },
    "sealed": {"group": str, "parts": int, "rows": int},
    "dropped": {"group": str, "reason": str},
    "retired": {"group": str, "part": int, "reason": str},
    "failed": {"group": str, "part": int, "attempt": str, "error": str},
    "pin": {"pin": str, "entries": list, "segments": list, "tombstones": list},
    "asset": {"files": dict},
    "index": {"group": str, "table": str, "pin": str, "parts": str, "latents": str, "files": list},
}
_OPTIONAL = {
    "position",
    "replaces",
    "reason",
    "purged",
    "tombstones",
    "without",
}  # every other key is always there
_HEAD = {"v", "kind", "store", "self"}


def make_record(kind: str, store_id: str, body: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return a record's bytes and its hash (``self``)."""
    record = _plain({**body, "v": FORMAT_VERSION, "kind": kind, "store": store_id})
    unknown = set(record) - set(_FIELDS[kind]) - _HEAD
    assert not unknown, f"record kind {kind} has no key {unknown}"
    digest = sha256(canonical(record))
    data = canonical({**record, "self": digest})
    if not _shallow(data):
        raise InvalidInputError(
            f"a {kind} record would be nested deeper than the {MAX_DEPTH} levels that readers take. Nothing was written. "
            "Flatten its recipe or provenance.",
            kind="record-too-deep",
        )
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
    if record.get("v") != FORMAT_VERSION or str(record.get("kind")) not in _FIELDS:
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


def load_record(storage: Storage, key: str, kind: str, store_id: str | None) -> dict[str, Any]:
    """Read the record under a key; see ``read_record``. Of one that is too large no more is read than shows that."""
    return read_record(storage.get(key, MAX_RECORD_BYTES), kind, store_id, key)


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
        record = (
            _canonical_record(data) if len(data) <= MAX_RECORD_BYTES and _shallow(data) else None
        )
        good = record is not None and sha256(_without_self(data, record)) == record["self"]
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


def _shallow(data: bytes) -> bool:
    """Return whether lists and objects are nested no deeper than what walks them can go."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return True
    depth = 0
    for byte in _STRING.sub(b"", data).translate(None, _NO_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            return False
    return True


def _refuse_number(text: str) -> Any:
    msg = f"{text} is no integer"
    raise ValueError(msg)


_loads = json.JSONDecoder(parse_float=_refuse_number, parse_constant=_refuse_number).decode


def _canonical_record(data: bytes) -> dict[str, Any] | None:
    """Return what canonical JSON says; None or ValueError for any other text of it.

    What was parsed holds integers, strings, null, lists and objects alone, so that dumping it again is enough; only
    booleans would pass, and are looked for.
    """
    record = _loads(data.decode())
    if b"true" in data or b"false" in data:
        return record if canonical(record) == data else None
    return record if _dumps(record).encode() == data else None


def _without_self(data: bytes, record: Mapping[str, Any]) -> bytes:
    """Return the canonical JSON of a record without its key ``self``."""
    mine = f',"self":"{record["self"]}"'.encode()
    if data.count(mine) == 1:  # then it is the record's own
        return data.replace(mine, b"")
    return canonical({key: value for key, value in record.items() if key != "self"})


def foreign_record(where: str, what: str) -> CorruptError:
    """Return the error for a sound record in a place it does not belong to."""
    return CorruptError(
        f"{where} {what}. It was not used. Restore the record that belongs there.",
        kind="foreign-record",
        path=where,
    )
