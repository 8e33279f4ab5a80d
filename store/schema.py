"""Groups, columns and recipes: frozen values, hashed, JSON both ways."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from store.errors import InvalidInputError
from store.records import canonical, sha256

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=-]{0,127}")
_COLUMN = re.compile(r"(?P<dtype>[a-z]+[0-9]{0,3})(\[(?P<shape>[0-9]{1,9}(,[0-9]{1,9}){0,15})\])?")
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


def check_reason(reason: str) -> str:
    """Return why something is taken away, or raise ``reason-missing``."""
    if not reason.strip():
        raise InvalidInputError(
            "no reason was given. Nothing was changed. Say why: it is kept for whoever looks for the rows.",
            kind="reason-missing",
        )
    return reason


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

    @property
    def gradient(self) -> bool:
        """Whether its columns are gradients at sites, whose names they keep: they are asked for by the group's name."""
        return self.recipe.get("gradient") is not None

    @property
    def states(self) -> bool:
        """Whether the group holds states made of whole parts (partial columns), not rows."""
        return any(column.kind == "partial" for column in self.columns.values())

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


def subseed(root: int, purpose: str, index: int = 0) -> int:
    """Return the seed of one purpose: the first 8 bytes of sha256("root/purpose/index"), big-endian."""
    digest = hashlib.sha256(f"{root}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
