"""F1: an induction circuit whose every weight is written by hand, so that every score has a closed form.

Two layers of four heads, no norm, no MLP. The stream is ``tok | pos | prev | out | junk``. L0H0 copies the token before into
``prev``; L1H0 looks for the key whose ``prev`` is the query's token and copies the token there into ``out`` with gain 10
(induction); L1H1 has the same pattern and writes to ``junk`` (a decoy); L1H2 copies the token before into ``out`` with gain
0.5 (an echo). All other heads are noise that writes to ``junk``. The unembedding reads ``out`` alone. A match scores 20.

Own definition: the fixture F1 of the circuit specification.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ingest.models.planted.contract import PLANTED, symbols_and_begin
from ingest.models.planted.training import untrained
from store.schema import subseed

SYMBOLS, POSITIONS, LAYERS, HEADS, HEAD, JUNK = 16, 33, 2, 4, 33, 8
MATCH, GAIN, ECHO = 20.0, 10.0, 0.5
_NOISE = 1e-2
_TOKENS = SYMBOLS + 1
_TOK, _POS = slice(0, _TOKENS), slice(_TOKENS, _TOKENS + POSITIONS)
_PREV = slice(_POS.stop, _POS.stop + _TOKENS)
_OUT = slice(_PREV.stop, _PREV.stop + _TOKENS)
_JUNK = slice(_OUT.stop, _OUT.stop + JUNK)
WIDTH = _JUNK.stop


@PLANTED.register("compiled_induction")
@dataclass(frozen=True, kw_only=True, slots=True)
class CompiledInduction:
    """An induction circuit written by hand: a head that matches, a decoy, an echo, and five of noise."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    seed: int = 0
    """Root of the noise heads' seeds."""

    def words(self) -> list[str]:
        """Return ``t0`` to ``t15`` and ``<bos>``."""
        return symbols_and_begin(SYMBOLS)

    def build(self) -> Any:
        """Return the model."""
        model: Any = untrained(
            vocab_size=_TOKENS,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            head_dim=HEAD,
            norms=False,
            max_position_embeddings=POSITIONS,
            bos_token_id=SYMBOLS,
            eos_token_id=SYMBOLS,
            pad_token_id=SYMBOLS,
        )
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
            model.model.embed.weight[:, _TOK] = torch.eye(_TOKENS)
            model.model.positions.weight[:, _POS] = torch.eye(POSITIONS)
            model.lm_head.weight[:, _OUT] = torch.eye(_TOKENS)
            for layer, block in enumerate(model.model.layers):
                for number in range(HEADS):
                    mine = slice(number * HEAD, (number + 1) * HEAD)
                    q, k, v, o = self._head(layer, number)
                    block.attn.q.weight[mine], block.attn.k.weight[mine] = q.T, k.T
                    block.attn.v.weight[mine], block.attn.o.weight[:, mine] = v.T, o.T
        return model.eval()

    def _head(self, layer: int, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ``W_Q, W_K, W_V [D, dh]`` and ``W_O [dh, D]`` of a head."""
        sharp = math.sqrt(MATCH * math.sqrt(HEAD))
        q, k, v = (torch.zeros(WIDTH, HEAD) for _ in range(3))
        o = torch.zeros(HEAD, WIDTH)
        symbols = torch.eye(_TOKENS, HEAD)
        if (layer, number) in {(0, 0), (1, 2)}:
            q[_POS] = sharp * torch.eye(POSITIONS, HEAD)
            k[_POS] = sharp * torch.diag(torch.ones(POSITIONS - 1), 1)
        elif (layer, number) in {(1, 0), (1, 1)}:
            q[_TOK] = k[_PREV] = sharp * symbols
        else:
            rng = np.random.Generator(
                np.random.Philox(key=subseed(self.seed, "noise", 4 * layer + number))
            )
            q, k, v = (_noise(rng, (WIDTH, HEAD)) for _ in range(3))
            o[:, _JUNK] = _noise(rng, (HEAD, JUNK))
            return q, k, v, o
        v[_TOK] = symbols
        if (layer, number) == (0, 0):
            o[:_TOKENS, _PREV] = torch.eye(_TOKENS)
        elif (layer, number) == (1, 1):
            o[:_TOKENS, _JUNK] = GAIN * torch.eye(_TOKENS, JUNK)
        else:
            o[:_TOKENS, _OUT] = (GAIN if number == 0 else ECHO) * torch.eye(_TOKENS)
        return q, k, v, o

    def truth(self) -> dict[str, Any]:
        """Return the heads' roles, the edges that carry the circuit, and the closed forms of its scores."""
        return {
            "heads": {
                "previous_token": [0, 0],
                "induction": [1, 0],
                "decoy": [1, 1],
                "echo": [1, 2],
            },
            "circuit": [[0, 0], [1, 0]],
            "edges": [
                *[["embed", f"L0H0.{end}"] for end in "qkv"],
                *[["embed", f"L1H0.{end}"] for end in "qv"],
                ["L0H0", "L1H0.k"],
                ["L1H0", "logits"],
            ],
            "weak_edges": [*[["embed", f"L1H2.{end}"] for end in "qkv"], ["L1H2", "logits"]],
            "exposed_by_key_corruption": [
                ["embed", "L0H0.v"], ["L0H0", "L1H0.k"], ["L1H0", "logits"],
            ],
            "exposed_by_query_corruption": [["embed", "L1H0.q"], ["L1H0", "logits"]],
            "match_score": MATCH,
            "gain": GAIN,
            "echo_gain": ECHO,
            "closed_forms": {
                "patching_weight": "1 - 1/n",
                "gradient_at_corrupt": "s (1/n)(1 - 1/n)",
                "gradient_at_clean": "s (n - 1) exp(-s)",
            },
        }  # fmt: skip


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(_NOISE * rng.standard_normal(shape)).float()
