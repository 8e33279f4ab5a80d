"""Models that see: what they are handed of images, and the layouts their families share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ingest.errors import ModelError
from ingest.models.contract import Anatomy, AttentionSpec, Bends, Tap, Vision
from ingest.models.views import heads_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from ingest.models.contract import Given


def shown(
    family: str,
    vision: Vision,
    seen: Mapping[str, Any],
    given: Given | None,
    device: torch.device,
) -> dict[str, Any]:
    """Return the arguments of a forward that sees images.

    Raises
    ------
    ModelError
        ``no-images``: it was given none; ``image-size``: they are not as large as it takes them.
    """
    if given is None:
        if vision.rows == "tokens":
            return dict(seen)  # a text without images
        raise ModelError(
            f"the {family} model sees images and was given none. Nothing was run. Use --source images, or image_text for a "
            "model of images and texts.",
            kind="no-images",
        )
    check_size(family, vision, (int(given.pixels.shape[2]), int(given.pixels.shape[3])))
    pixels = given.pixels.to(device)
    if vision.rows == "patches":
        return {"pixel_values": pixels}
    if vision.rows == "tokens":
        return {**seen, **({"pixel_values": pixels} if len(pixels) else {})}
    assert given.text is not None
    assert given.text_mask is not None
    return {
        "pixel_values": pixels,
        "input_ids": given.text.to(device),
        "attention_mask": given.text_mask.to(device),
    }


def check_size(family: str, vision: Vision, size: tuple[int, int]) -> None:
    """Raise ``image-size`` where a model does not take images of some height and width."""
    whole = not (size[0] % vision.patch or size[1] % vision.patch)
    if size == (vision.height, vision.width) or (vision.any_size and whole):
        return
    wanted = (
        f"multiples of {vision.patch}" if vision.any_size else f"{vision.height} x {vision.width}"
    )
    raise ModelError(
        f"images of {size[0]} x {size[1]} pixels were given to a {family} model that takes {wanted}. Nothing was run. Give its "
        "preprocessor_config.json that size.",
        kind="image-size",
    )


def rows_of(vision: Vision, size: tuple[int, int]) -> int:
    """Return the rows of an image of a height and width, those before its patches included."""
    return vision.lead + (size[0] // vision.patch) * (size[1] // vision.patch)


def sides(size: Any) -> tuple[int, int]:
    """Return height and width of what a config gives as one number or two."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def tower(
    config: Any,
    *,
    block: str,
    attention: str,
    out: str,
    norms: tuple[str, str],
    mlp: tuple[str, str, str],
    causal: bool = False,
    inner: int | None = None,
) -> Anatomy:
    """Return the blocks of a pre-norm encoder; its family adds what comes before and behind them.

    Parameters
    ----------
    block, attention, out, norms, mlp
        Paths: a block; below it the attention module, its last projection, the norms before attention and MLP, and of the MLP
        the module, its first and its last projection.
    inner
        Neurons; the config's where None.
    """
    width, count = config.hidden_size, config.num_attention_heads
    head = width // count
    per_head = ((count, head), heads_of(count, head))
    inner = config.intermediate_size if inner is None else inner
    attn = f"{block}.{attention}"
    whole, first, last = (f"{block}.{path}" for path in mlp)
    return Anatomy(
        layers=config.num_hidden_layers,
        width=width,
        causal=causal,
        max_positions=None,
        attention=lambda _layer: AttentionSpec(
            heads=count, kv_heads=count, head_width=head, scale=head**-0.5, causal=causal
        ),
        block={
            "resid_pre": Tap(block, "in", (width,)),
            "attn.q": Tap(f"{attn}.q_proj", "out", *per_head),
            "attn.k": Tap(f"{attn}.k_proj", "out", *per_head),
            "attn.v": Tap(f"{attn}.v_proj", "out", *per_head),
            "attn.z": Tap(f"{attn}.{out}", "in", *per_head),
            "attn.out": Tap(f"{attn}.{out}", "out", (width,), also=(attn,)),
            "resid_mid": Tap(f"{block}.{norms[1]}", "in", (width,)),
            "mlp.in": Tap(whole, "in", (width,)),
            "mlp.pre": Tap(first, "out", (inner,)),
            "mlp.post": Tap(last, "in", (inner,)),
            "mlp.out": Tap(last, "out", (width,), also=(whole,)),
            "resid_post": Tap(block, "out", (width,)),
        },
        bends=Bends(
            norms=tuple(f"{block}.{norm}" for norm in norms),
            activations=(f"{whole}.activation_fn",),
            attentions=(attn,),
            adds=(f"{attn}.{out}",),
            mlps=(last,),
        ),
    )


def below(prefix: str, anatomy: Anatomy) -> Anatomy:
    """Return an anatomy whose modules lie below another: ``language_model``."""

    def tap(one: Tap) -> Tap:
        return replace(
            one,
            module=f"{prefix}.{one.module}",
            within=f"{prefix}.{one.within}" if one.within else "",
            also=paths(one.also),
        )

    def taps(many: Mapping[str, Tap]) -> dict[str, Tap]:
        return {name: tap(one) for name, one in many.items()}

    def paths(many: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{prefix}.{path}" for path in many)

    bends = anatomy.bends
    if bends is not None:
        bends = replace(
            bends,
            norms=paths(bends.norms),
            activations=paths(bends.activations),
            products=paths(bends.products),
            attentions=paths(bends.attentions),
            adds=paths(bends.adds),
            mlps=paths(bends.mlps),
        )
    return replace(
        anatomy,
        block=taps(anatomy.block),
        before=taps(anatomy.before),
        after=taps(anatomy.after),
        rotary=None if anatomy.rotary is None else f"{prefix}.{anatomy.rotary}",
        bends=bends,
    )
