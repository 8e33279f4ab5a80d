"""What a model family declares, and what everybody else sees of a model.

A family describes where its sites lie in its own Hugging Face modules (`Anatomy` of `Tap`s) and
nothing else; `ingest.models.hooks` turns the description into a `ModelAdapter`. The price is that
a site must be a view of one module's first input or output, or of what an attention module hands
to its attention function: sums that none of them sees cannot be sites.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from store.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from ingest.models.pictures import Pictures


@dataclass(frozen=True, slots=True)
class SiteInfo:
    """One site of one model."""

    name: str
    """Canonical name, ``blocks.3.attn.z``."""
    shape: tuple[int, ...]
    """Shape of one token's value: ``(D,)``, or ``(H, dh)`` for per-head sites."""
    depth: int
    """Place along the forward pass; a forward that stops after depth n has run every site up to
    n."""
    note: str = ""
    """What a reader of the column must know, empty where the name says it all."""
    dtype: str = ""
    """Dtype in which values are stored, whatever a harvest's is; empty where the harvest decides."""
    fixed: bool = False
    """Whether it can only be looked at: the model does not go on with it."""

    @property
    def differentiable(self) -> bool:
        """Whether anything has a gradient by it."""
        return not (self.fixed or self.dtype)


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding in the half-split layout (Llama, NeoX)."""

    inverse_frequencies: tuple[float, ...]
    """Radians per position of each rotated pair; twice as many leading features of a head turn."""
    magnitude: float = 1.0
    """Factor on the turned features (YaRN's attention scaling)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpec:
    """All one needs to recompute a layer's attention from its q, k and v."""

    heads: int
    """Query heads H."""
    kv_heads: int
    """Key and value heads G; query head h reads key head ``h // (H // G)``."""
    head_width: int
    """Features dh of one head."""
    scale: float
    """Factor on ``q · k``."""
    causal: bool
    """Whether position i sees only positions up to i."""
    softcap: float | None = None
    """Where set, scores become ``softcap * tanh(score / softcap)`` before masking."""
    window: int | None = None
    """Where set, position i sees only positions j with ``|i - j| < window``."""
    rotary: Rotary | None = None
    """Where set, ``attn.q`` and ``attn.k`` are before rotation (`ingest.models.rotate` turns them) and
    ``attn.rot_q`` and ``attn.rot_k`` after it, the very tensors attention saw."""


def whole(value: Tensor) -> Tensor:
    """Return the module's tensor as it is."""
    return value


@dataclass(frozen=True, slots=True)
class Tap:
    """Where one site lies: an end of one module, and the view of its tensor.

    ``in`` is a module's first input and ``out`` its (first) output. ``query`` and ``key`` are what an
    attention module hands to its attention function, ``[B, heads, T, dh]``: after rotation, and after
    norms of q and k where a model has them (`ingest.models.seam`).
    """

    module: str
    """Path below the base model, ``{l}`` standing for the block: ``h.{l}.attn.c_proj``."""
    end: Literal["in", "out", "query", "key"]
    """Which of the module's tensors it is."""
    shape: tuple[int, ...]
    """Shape of one token's value."""
    view: Callable[[Tensor], Tensor] = whole
    """Pure, and returning a view of its argument: an edit writes through it into a clone."""
    also: tuple[str, ...] = ()
    """Other module paths that put out the same value; accepted as names of the site."""
    note: str = ""
    """Handed on to `SiteInfo.note`."""
    within: str = ""
    """Path of a module around it whose first input is ``[B, T, …]``, where this module's tensors lie flat, ``[B * T, …]``."""
    item: int = 0
    """Which of several outputs it is."""
    dtype: str = ""
    """Set for whole numbers, ``int16``: what they are stored in. They have no gradient."""
    fixed: bool = False
    """Set where the model does not go on with the tensor: an edit would change nothing and is refused."""


def weight_of(norm: Any) -> Tensor | float:
    """Return a norm's weight, 1 where it has none."""
    weight: Tensor | None = norm.weight
    return 1.0 if weight is None else weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Bends:
    """Modules that are no linear maps, whose backward a gradient rule may replace.

    Paths below the base model, ``{l}`` standing for the block.
    """

    norms: tuple[str, ...] = ()
    """`nn.LayerNorm` or an RMS norm: ``y = (x - mean?) / scale * weight (+ bias)``."""
    activations: tuple[str, ...] = ()
    """Elementwise functions."""
    products: tuple[str, ...] = ()
    """Modules whose input is an elementwise product of two branches: what follows a gated MLP's gate."""
    attentions: tuple[str, ...] = ()
    """Attention modules of transformers, which call an attention function (`ingest.models.seam`)."""
    adds: tuple[str, ...] = ()
    """Modules whose output is what attention adds to the stream, block by block: those of ``attn.out``, so that the site
    lies behind what a rule does there."""
    mlps: tuple[str, ...] = ()
    """Modules whose output is what an MLP adds to the stream, block by block: those of ``mlp.out``."""
    gain: Callable[[Any], Tensor | float] = weight_of
    """What a norm multiplies by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vision:
    """What a model sees of images, and what its rows are."""

    rows: Literal["patches", "tokens", "pairs"]
    """``patches``: a sequence is an image, row by row of its grid; ``tokens``: images stand among a text's tokens, one for each
    patch; ``pairs``: a row is an image with a text."""
    height: int
    width: int
    patch: int
    """Pixels of a patch, each way."""
    lead: int = 1
    """Rows before the patches: the class token, registers."""
    any_size: bool = False
    """Whether images of other sizes are taken, whole patches each way."""
    token: int | None = None
    """Id of the token that stands for a patch among others."""
    text_tokens: int = 0
    """Tokens of the text of a pair."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Given:
    """What a model is given beside the ids of its rows."""

    pixels: Tensor
    """``float32[N, 3, height, width]``, normalised as the model wants them; an image a sequence, or as many as the ids have."""
    text: Tensor | None = None
    """``int64[B, L]``, the texts of pairs, padded."""
    text_mask: Tensor | None = None
    """``int64[B, L]``."""


def everywhere_alike(_layer: int) -> str:
    """Return the beginning of names that are the same in every block: none."""
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """One model's sites, in the order the forward pass reaches them."""

    layers: int
    width: int
    causal: bool
    max_positions: int | None
    """Longest sequence the model takes, in tokens; None where nothing limits it."""
    block: Mapping[str, Tap]
    """Sites of every block: name below ``blocks.{l}`` → tap."""
    attention: Callable[[int], AttentionSpec] | None = None
    """The attention of a block, given its number; None for models that mix positions otherwise."""
    before: Mapping[str, Tap] = field(default_factory=dict)
    """Sites ahead of the blocks: whole name → tap."""
    after: Mapping[str, Tap] = field(default_factory=dict)
    """Sites behind the blocks: whole name → tap."""
    bends: Bends | None = None
    """What is not linear in it, for gradient rules; None where nobody said, and only exact gradients are taken."""
    rotary: str | None = None
    """Path of the module that turns q and k, below the base model: the ``inv_freq`` and
    ``attention_scaling`` it holds complete each block's `AttentionSpec`."""
    rotary_kind: Callable[[int], str] = everywhere_alike
    """What the names of both begin with for a block, where the module holds several of them."""
    vision: Vision | None = None
    """What it sees of images; None for models of text alone."""


class Family(Protocol):
    """A Hugging Face model type; one file each, filed in `ADAPTERS` under ``config.model_type``."""

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]]
    """Beginnings of weight names that no site depends on and a checkpoint may lack."""
    tokens: ClassVar[Literal["wordpiece", "bytes", "clip", "none"]]
    """The kind of tokenizer its toy models get. A family may also have ``maker``, the class of transformers that loads it
    where the Auto class of its checkpoint's kind does not, and ``towers``, families of its parts by what they alone take."""

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites of a model with this Hugging Face config lie."""

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the Hugging Face config of a tiny model of this family."""


ADAPTERS = Registry("model family", "ingest.models")


class ModelAdapter(Protocol):
    """A model with named sites."""

    family: str
    layers: int
    width: int
    causal: bool
    max_positions: int | None
    vision: Vision | None
    trained_length: int | None
    """Longest sequence it was trained on, as far as its config says; claims about structure end there."""

    def sites(self) -> dict[str, SiteInfo]:
        """Return the sites by name, in order of depth."""

    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Return other names (the model's own module paths) and the sites each stands for."""

    def attention(self, layer: int) -> AttentionSpec:
        """Return what it takes to recompute the attention of block ``layer``."""

    @property
    def attends(self) -> bool:
        """Whether its blocks have attention."""

    def capture(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        sites: Sequence[str],
        *,
        logits: Callable[[Tensor], None] | None = None,
        positions_BT: Tensor | None = None,
        given: Given | None = None,
    ) -> dict[str, Tensor]:
        """Return ``{site: [B, T, *shape]}``, the model's own tensors, in the order asked; show the logits where wanted.

        Where positions are given, a lane holds several sequences, none seeing another.
        """

    def listen(self, site: str, fn: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call ``fn`` with the site's value in every forward; a tensor it returns replaces it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model ready to be captured from, and what identifies it."""

    adapter: ModelAdapter
    tokenizer: Any
    """The Hugging Face tokenizer; None for a model of images alone."""
    model: nn.Module
    """In evaluation mode, parameters without gradients."""
    name: str
    """As it was asked for: a folder or a hub id."""
    folder: Path
    """Where its files lie on this machine."""
    config_sha256: str
    files: Mapping[str, str]
    """sha256 of ``config.json`` and of every weight file, by file name."""
    compute_dtype: str
    """``float32``, ``bfloat16`` or ``float16``."""
    attn_implementation: str
    revision: str | None
    """Commit of the hub repository; None for a local folder."""
    pictures: Pictures | None = None
    """What makes pixels of image files; None for a model of text alone."""

    @property
    def identity(self) -> dict[str, Any]:
        """What a recipe keeps of a model: its family, and its commit or the hashes of its files."""
        made_of = {"commit": self.revision} if self.revision else dict(self.files)
        return {"family": self.adapter.family, **made_of}
