"""Where everything lies: row ↔ part ↔ shard ↔ chunk ↔ key, and sizes in bytes. Pure arithmetic.

The shard layout is fixed by the column's shape alone for the raw codec, so offsets can be computed without
reading the index; the index is there for every other Zarr reader, and is checked against this arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from store.errors import InvalidInputError

CHUNK_ROWS = 256
ALIGN = 4096
SLOT_BYTES = 4096
MISSING = 2**64 - 1
PARTS_A_FOLDER = 4096
MAX_TABLE_BYTES = 4 << 30  # of a part, which is read whole
MAX_PARTS = 10**8
MAX_STRIDE = 1 << 30  # 10^8 parts of it number their rows within int64

STORE_KEY = "store.json"
_FOLDER = re.compile(r"[0-9]{6}/")
_RECORD = re.compile(r"([0-9]{8})\.(0|[1-9][0-9]{0,8})\.json")
_OBJECT = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.@=-]{0,143}(/[A-Za-z0-9_][A-Za-z0-9_.@=-]{0,127}){0,12}"
)


def group_key(group: str) -> str:
    """Return the key of a group's declaration."""
    return f"groups/{group}/group.json"


def sealed_key(group: str) -> str:
    """Return the key that says a group is complete."""
    return f"groups/{group}/sealed.json"


def dropped_key(group: str) -> str:
    """Return the key that says a group is gone for good."""
    return f"groups/{group}/dropped.json"


def retired_prefix(group: str) -> str:
    """Return the prefix under which retired parts are named."""
    return f"groups/{group}/retired/"


def retired_key(group: str, part: int) -> str:
    """Return the key of the record that retires a part."""
    return f"{retired_prefix(group)}{part:08d}.json"


def failed_key(group: str, part: int, attempt: str) -> str:
    """Return the key of the record of an attempt that failed."""
    return f"groups/{group}/failed/{part:08d}-{attempt}.json"


def indexes_prefix(group: str) -> str:
    """Return the prefix of all indexes of a group."""
    return f"groups/{group}/indexes/"


def index_key(group: str, table: str, pin: str) -> str:
    """Return the key of the index of one table over the commits of a pin."""
    return f"{indexes_prefix(group)}{table}-{pin}.json"


def commits_prefix(group: str) -> str:
    """Return the prefix of all commit records of a group."""
    return f"groups/{group}/commits/"


def commit_key(group: str, part: int, n: int = 0) -> str:
    """Return the key of commit ``n`` of a part."""
    return f"{commits_prefix(group)}{part // PARTS_A_FOLDER:06d}/{part:08d}.{n}.json"


def parse_commit_keys(group: str, keys: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yield (part, n) of every commit record of a group among some keys; undoes ``commit_key``.

    A store may have a million; they come folder by folder, and nearly all are first commits.
    """
    prefix = commits_prefix(group)
    start, head, first = len(prefix) + 7, "", -PARTS_A_FOLDER
    for key in keys:
        if key[:start] != head:
            head = key[:start]
            folder = _FOLDER.fullmatch(head.removeprefix(prefix))
            known = folder is not None and head.startswith(prefix)
            first = int(head[len(prefix) : -1]) * PARTS_A_FOLDER if known else -PARTS_A_FOLDER
        digits = key[start : start + 8]
        if key[start + 8 :] == ".0.json" and digits.isdecimal() and digits.isascii():
            part, n = int(digits), 0
        elif (match := _RECORD.fullmatch(key, start)) is not None:
            part, n = int(match[1]), int(match[2])
        else:
            continue
        if 0 <= part - first < PARTS_A_FOLDER:
            yield part, n


def check_part(part: object) -> int:
    """Return a part's number, or raise ``ValueError`` where it is none."""
    if type(part) is not int or not 0 <= part < MAX_PARTS:
        msg = f"{str(part)[:40]!r} is no part's number"
        raise ValueError(msg)
    return part


def attempt_prefix(group: str, part: int, attempt: str) -> str:
    """Return the folder of one attempt at one part."""
    return f"groups/{group}/parts/{part:08d}/{attempt}/"


def shard_path(column: str, dimensions: int) -> str:
    """Return a dense column's shard below its attempt: one outer chunk at the origin."""
    return f"{column}/c/" + "/".join(["0"] * dimensions)


def check_object_path(path: str) -> str:
    """Return ``path`` where it may name an object of an attempt, else raise ``bad-path``."""
    if _OBJECT.fullmatch(path) is None or ".." in path.split("/"):
        raise InvalidInputError(
            f"object path {path!r} leaves its attempt. Nothing was read or written. Restore the record that "
            "names it.",
            kind="bad-path",
        )
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardLayout:
    """Byte offsets of a raw shard.

    Identity slot (4096 bytes), then chunk ``j`` of 256 rows with its crc32c at ``offset(j)``, each starting at
    a multiple of 4096, then at the end the index: ``slots`` pairs (offset, nbytes) of uint64 and a crc32c.
    """

    row_bytes: int
    rows: int
    stride_rows: int

    @property
    def chunks(self) -> int:
        """Chunks that hold rows; the last one is filled up to 256 rows."""
        return -(-self.rows // CHUNK_ROWS)

    @property
    def slots(self) -> int:
        """Entries of the index: chunks of a full shard."""
        return self.stride_rows // CHUNK_ROWS

    @property
    def chunk_bytes(self) -> int:
        """Decoded bytes of a chunk."""
        return self.row_bytes * CHUNK_ROWS

    @property
    def coded_bytes(self) -> int:
        """Bytes of a chunk in the shard: values and crc32c."""
        return self.chunk_bytes + 4

    @property
    def spacing(self) -> int:
        """Distance between the starts of two chunks."""
        return -(-self.coded_bytes // ALIGN) * ALIGN

    def offset(self, chunk: int) -> int:
        """Return where chunk ``chunk`` starts."""
        return SLOT_BYTES + chunk * self.spacing

    @property
    def index_offset(self) -> int:
        """Where the index starts: behind the padding of the last chunk."""
        return self.offset(self.chunks)

    @property
    def index_bytes(self) -> int:
        """Size of the index with its crc32c."""
        return 16 * self.slots + 4

    @property
    def total_bytes(self) -> int:
        """Size of the shard."""
        return self.index_offset + self.index_bytes


def check_parts(part_rows: int, part_stride: int) -> None:
    """Raise ``bad-part-rows`` unless parts are whole chunks that fit their stride."""
    if (
        part_rows <= 0
        or part_rows % CHUNK_ROWS
        or part_stride % CHUNK_ROWS
        or part_rows > part_stride
        or part_stride > MAX_STRIDE
    ):
        raise InvalidInputError(
            f"part_rows={part_rows}, part_stride={part_stride}: both must be positive multiples of "
            f"{CHUNK_ROWS} rows, part_rows at most part_stride and that at most {MAX_STRIDE}. Nothing was "
            "written. Choose other sizes.",
            kind="bad-part-rows",
        )
