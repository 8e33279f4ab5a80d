"""Whether a model attends as its family says: recomputed from q, k and v, attention must be what the model made of them.

Every harvest that keeps or shows q, k, v or z asks once, of a sample, before it writes anything: statistics, kernels and
intervention work from those columns and the recorded `AttentionSpec`, and would be wrong in silence.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from ingest.errors import ModelError
from ingest.models import attend, attention_sites

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from ingest.models import ModelAdapter
    from ingest.models.contract import Given

SAMPLE_SEQUENCES = 2
"""The longest of the first batch."""
ENOUGH_TOKENS = 16
"""Of a sample: where every sequence is shorter, whatever a model says of itself may be so, and the next batch is asked, too."""
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-5}
COARSE = 1e-2
"""Of models that compute in 16 bits."""
_ATTENTION = re.compile(r"blocks\.(\d+)\.attn\.(?:q|k|v|z|rot_q|rot_k)")


def attention_blocks(sites: Iterable[str]) -> list[int]:
    """Return the blocks of which some q, k, v or z is among the sites, ascending."""
    found = map(_ATTENTION.fullmatch, sites)
    return sorted({int(match[1]) for match in found if match})


def check_attention(
    adapter: ModelAdapter,
    ids_BT: Tensor,
    mask_BT: Tensor,
    sites: Iterable[str],
    given: Given | None = None,
) -> float:
    """Return the largest difference between z and attention computed anew, over the blocks that some sites belong to.

    Parameters
    ----------
    ids_BT, mask_BT
        A sample of sequences, each in a lane of its own.
    given
        Their images, for a model that sees.

    Returns
    -------
    float
        ``‖z' − z‖ / ‖z‖`` over the tokens of the sample, of the worst block; 0 where no site is attention's.

    Raises
    ------
    ModelError
        ``attention-differs``: by more than 1e-5, or 1e-2 for a model that computes in 16 bits.
    """
    seen_BT = mask_BT.bool()
    worst = 0.0
    for layer in attention_blocks(sites):
        captured = adapter.capture(ids_BT, mask_BT, attention_sites(adapter, layer), given=given)
        q, k, v, z = captured.values()
        again, _ = attend(q, k, v, adapter.attention(layer), mask_BT.to(q.device))
        seen = seen_BT.to(z.device)
        wanted = z[seen].to(again.dtype)
        error = float((again[seen] - wanted).norm() / wanted.norm().clamp_min(1e-30))
        limit = TOLERANCES.get(z.dtype, COARSE)
        if not error <= limit:  # NaN is no small difference either
            raise ModelError(
                f"attention of block {layer}, computed anew from its q, k and v as the {adapter.family} family says it attends, "
                f"differs from z by {error:.1e} of its size ({limit:.0e} are allowed). Nothing was written. This version of "
                "transformers attends otherwise, or the config has a setting the family does not know; leave out the sites of "
                "attention, or mend the family in ingest/models/.",
                kind="attention-differs",
                block=layer,
            )
        worst = max(worst, error)
    return worst
