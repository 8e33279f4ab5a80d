"""Settings of ``bench attention`` and ``bench codes``."""

from dataclasses import dataclass

from tyro.conf import Positional

from jobs.config.base import Latents, Numbers, Rows, Shares, Verb, Words


@dataclass(frozen=True, kw_only=True)
class BenchAttention(Verb):
    """Measure sparse attention on stored q, k and v: what it misses, what it takes, what structure gives.

    Example: actlake bench attention ./store --layer 3 --planners oracle,moba --densities .125,.25 --out ./runs
    """

    url: Positional[str]
    """The store."""
    layer: Numbers
    """Layers, blocks from 0; commas for several."""
    group: str | None = None
    """Group that holds the attention's columns; default: the only one that does."""
    planners: Words = ("moba", "oracle", "random", "sink_local")
    """Planners."""
    densities: Shares = (0.125, 0.25, 0.5)
    """Shares of the visible key tiles that a plan may keep."""
    block: int = 16
    """Queries and keys of a tile."""
    plan_heads: str = "query"
    """Whether each query head has a plan of its own, or those of a key head share one: query, kv."""
    controls: Words = ("gauss_cov", "gauss_iid", "perm_tok")
    """Controls that real tensors are compared with: these, perm_rot; real alone for none."""
    sequences: int = 16
    """Sequences, one of each document as far as documents go, the longest first."""
    split: str = "all"
    """Split to take documents from."""
    executor: str = "torch_blocks"
    """Executor that is timed and checked."""
    precision: str = "float32"
    """Dtype of the executor's products: float32, bfloat16."""
    repeats: int = 9
    """Timed runs of each plan, interleaved; 0 for no times."""
    lengths: Numbers | None = None
    """Longer sequences to time, in tokens; their rows are labelled shape only."""
    model: str | None = None
    """Model folder to read attention facts from where the store has none."""
    seed: int = 0
    """Root of what is drawn: random plans, controls, intervals."""
    out: str = "."
    """Folder that gets results/."""


@dataclass(frozen=True, kw_only=True)
class BenchCodes(Verb):
    """Measure products of sparse codes, dense against sparse: where the crossover lies on this machine.

    Example: actlake bench codes --on ./store --codes codes --latents 1k,4k,16k --k 8,32,128,512 --out ./runs
    """

    on: str | None = None
    """Store of codes to measure on as well; without one, the grid alone."""
    codes: str = "codes"
    """Group of codes in the store."""
    width: int = 384
    """Values of a row in the grid."""
    latents: Latents = (1024, 4096, 16384)
    """Latents in the grid; 4k is 4096."""
    k: Numbers = (8, 32, 128, 512)
    """Active latents of a row in the grid; those above half the latents are left out."""
    rows: Rows = 2048
    """Rows of a batch."""
    repeats: int = 7
    """Timed rounds, interleaved, at least 5."""
    controls: Words = ("real", "idx_uniform", "idx_zipf")
    """Of a store's codes: as they are, latents redrawn evenly, redrawn by a popularity law fitted to them."""
    record: bool = False
    """Keep the grid's figures with the code: training chooses its operations by them on this kind of hardware."""
    seed: int = 0
    """Root of what is drawn."""
    out: str = "."
    """Folder that gets results/."""
