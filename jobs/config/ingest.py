"""Settings of ``ingest``."""

from dataclasses import dataclass

from jobs.config.base import Names, Rows, Words
from jobs.config.placement import Placed


@dataclass(frozen=True, kw_only=True)
class Ingest(Placed):
    """Run a model over text once and keep what its sites held.

    Example: actlake ingest --model ./gpt2 --corpus texts/ --out ./store --sites "blocks.{3,5}.resid_post"
    """

    out: str | None = None
    """Store to make or complete."""
    into: str | None = None
    """Store to add a group of columns to, over its rows; needs --group (or --gradient), takes no flags about rows."""
    model: str | None = None
    """Folder or hub id of a Hugging Face model."""
    corpus: tuple[str, ...] = ()
    """Text files or folders, or JSON Lines or Parquet files."""
    source: str | None = None
    """Source by name, with settings: synthetic:width=64,features=128; default: by the corpus' endings."""
    rows: Rows | None = None
    """Rows to take at most, generated ones among them."""
    sites: Names = ("@50%",)
    """Site names, sets blocks.{3,5}.resid_post, blocks.*.attn.z, or @50%."""
    stats: Words | None = None
    """Circuit statistics to compute while the model runs; their sites need not be stored."""
    gradient: str | None = None
    """Write a metric's gradient at the sites in place of their values, by rule (README); exact is one."""
    metric: str | None = None
    """What the gradient is of; default: nll."""
    group: str | None = None
    """Name of the group to write; default: acts, or grad.RULE.METRIC."""
    context: int | None = None
    """Tokens of a sequence, special ones included; default: min(256, the model's positions)."""
    batch: int = 32
    """Sequences of a forward; part of the recipe."""
    lanes: bool = False
    """Lay short sequences side by side where one would leave padding; none sees another."""
    dtype: str = "auto"
    """Compute and store dtype: auto, float32, bfloat16, float16; gradients are stored in float32."""
    store_dtype: str | None = None
    """Store dtype where it differs."""
    codec: str = "raw"
    """How chunks are coded: raw, bitshuffle-zstd (smaller, exact), int8 or dynamic8 (half of bfloat16, rounded)."""
    part_rows: Rows = 16_384
    """Rows of a part, the unit of commit; a multiple of 256."""
    text: bool = True
    """Keep the documents' text in the store."""
    special_tokens: bool = True
    """Give sequences the tokenizer's special tokens."""
    bos: str = "auto"
    """Begin-of-text: auto (what the tokenizer does), or before every sequence, every document, or none."""
    packing: str = "none"
    """none: a sequence is of one document; fill: documents follow one another, cut every --context tokens."""
    duplicates: str = "keep"
    """keep or drop documents whose text an earlier one has; how many there are is told either way."""
    text_field: str = "text"
    """Field of the text in JSON Lines and Parquet."""
    name_field: str | None = None
    """Field of a document's name."""
    order_seed: int | None = None
    """Take files in a seeded order instead of by name."""
    generate: int | None = None
    """Let the model go on from every sequence for so many tokens; they become rows, and get a column logprob."""
    temperature: float = 0.0
    """Of what --generate draws; 0 takes the most likely token."""
    generate_seed: int = 0
    """Seed of these draws."""
    sample: float | None = None
    """Keep this share of the rows in the group, chosen by row id."""
    sample_seed: int = 0
    """Seed of the choice."""
    weights: Words | None = None
    """Weights to keep beside the columns: W_E, W_U, W_O, W_out, or blocks.3.attn.W_O."""
    split_seed: int = 0
    """Seed of the split into train, val and test by document."""
    allow_nonfinite: bool = False
    """Accept NaN and infinities."""
    device: str = "cpu"
    """Where the model runs."""
    attn_implementation: str = "auto"
    """As transformers names it; auto is sdpa where the model has it, else eager."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    shard: str | None = None
    """Do share I of N, as 0/3; start one process for each, anywhere the store is."""


@dataclass(frozen=True, kw_only=True)
class Plan(Ingest):
    """Say what an ingest would come to: rows, parts, bytes, operations, time here, money. Takes what ingest takes.

    What --generate itself takes is not counted, and rows are then at most.

    Example: actlake plan --model ./gpt2 --corpus texts/ --out ./store --sites "blocks.*.resid_post" --prices prices.yaml
    """

    prices: str | None = None
    """YAML or JSON: storage_gb_month, put_1000, get_1000, machine_hour, machine_flops, currency."""
