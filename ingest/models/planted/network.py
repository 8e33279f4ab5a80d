"""The modules of the plain decoder, in the manner of transformers; importing this file makes them known to its Auto classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.output_capturing import capture_outputs

_STD = 0.02


@strict
class PlainConfig(PreTrainedConfig):  # type: ignore[misc]
    """Settings of a plain decoder."""

    model_type = "plain"

    vocab_size: int = 17
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    head_dim: int = 16
    intermediate_size: int = 0
    """Neurons of an MLP; 0 for blocks of attention alone."""
    norms: bool = True
    """Whether layer norms come before each half and behind the last block."""
    max_position_embeddings: int = 64
    bos_token_id: int | None = 0
    eos_token_id: int | None = 0
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = False


def eager_attention_forward(
    module: nn.Module,
    query_BHTd: Tensor,
    key_BHTd: Tensor,
    value_BHTd: Tensor,
    attention_mask: Tensor | None,
    scaling: float = 1.0,
    dropout: float = 0.0,
    **_options: Any,
) -> tuple[Tensor, Tensor]:
    """Return attention's values ``[B, T, H, dh]`` and weights ``[B, H, T, T]``, every step in plain sight."""
    del module, dropout
    scores = query_BHTd @ key_BHTd.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query_BHTd.dtype)
    return (weights @ value_BHTd).transpose(1, 2).contiguous(), weights


class PlainAttention(nn.Module):
    """Causal attention without rotation or bias."""

    is_causal = True

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config
        wide = config.num_attention_heads * config.head_dim
        self.q, self.k, self.v = (nn.Linear(config.hidden_size, wide, bias=False) for _ in range(3))
        self.o = nn.Linear(wide, config.hidden_size, bias=False)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return what is added to the stream, and the weights where they were made."""
        shape = (*hidden_states.shape[:2], -1, self.config.head_dim)
        q, k, v = (
            project(hidden_states).view(shape).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        z, weights = attend(
            self,
            q,
            k,
            v,
            attention_mask,
            scaling=self.config.head_dim**-0.5,
            dropout=0.0,
            **options,
        )
        return self.o(z.reshape(*hidden_states.shape[:2], -1)), weights


class PlainMlp(nn.Module):
    """One hidden layer of GELU."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.act = nn.GELU()
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return what is added to the stream."""
        out: Tensor = self.down(self.act(self.up(hidden_states)))
        return out


class PlainBlock(nn.Module):
    """Attention, and an MLP where there is one, each behind its norm."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.attn_norm = _norm(config)
        self.attn = PlainAttention(config)
        self.mlp_norm = _norm(config) if config.intermediate_size else None
        self.mlp = PlainMlp(config) if config.intermediate_size else None

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> Tensor:
        """Return the stream behind the block."""
        added, _ = self.attn(self.attn_norm(hidden_states), attention_mask, **options)
        hidden_states = hidden_states + added
        if self.mlp is not None and self.mlp_norm is not None:
            hidden_states = hidden_states + self.mlp(self.mlp_norm(hidden_states))
        return hidden_states


def _norm(config: PlainConfig) -> nn.Module:
    return nn.LayerNorm(config.hidden_size) if config.norms else nn.Identity()


class PlainPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What both models have in common."""

    config_class = PlainConfig
    config: PlainConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ("PlainBlock",)
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": PlainBlock,
        "attentions": PlainAttention,
    }

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=_STD)


class PlainModel(PlainPreTrainedModel):
    """Embeddings, positions, blocks and the last norm."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(PlainBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = _norm(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of tokens."""
        return self.embed

    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,  # noqa: FBT001, FBT002, ARG002 - as transformers calls it
        **options: Any,
    ) -> BaseModelOutput:
        """Return the stream behind the last norm."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden_states = self.embed(input_ids) + self.positions(position_ids)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            cache=None,
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **options)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class PlainForCausalLM(PlainPreTrainedModel):
    """A plain decoder with an unembedding."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.model = PlainModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of tokens."""
        return self.model.embed

    def get_output_embeddings(self) -> nn.Module:
        """Return the unembedding."""
        return self.lm_head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> CausalLMOutput:
        """Return logits ``[B, T, V]``."""
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, **options)
        return CausalLMOutput(
            logits=self.lm_head(out.last_hidden_state),
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


AutoConfig.register("plain", PlainConfig, exist_ok=True)
AutoModel.register(PlainConfig, PlainModel, exist_ok=True)
AutoModelForCausalLM.register(PlainConfig, PlainForCausalLM, exist_ok=True)
