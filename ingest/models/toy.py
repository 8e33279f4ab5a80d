"""Tiny models with tokenizers of their own, for tests and examples that must not need a download.

Weights are random but lively: every matrix, bias and norm is drawn, large enough that attention
is far from uniform and a forgotten bias or norm changes the result. Equal arguments give equal
files.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ingest.models.contract import ADAPTERS, Vision
from ingest.models.hooks import family_of
from ingest.models.outside import quiet

TEXT = """The river carried the boat past the mill, and the miller counted the sacks of grain.
A row of seven stones marks the old road; nobody remembers who set them there, or when.
When the bell rang twice, the children ran home, and the baker closed his shop early.
"I have counted them again," said the miller, "and there are forty-one, not forty-two."
Snow fell on the hills, on the road, on the seven stones, and on the roof of the mill.
In spring the river rises; in autumn it is quiet, and the boat lies upside down on the bank.
"""
_STD = 0.3
_BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_GPT_END, _CLIP_START, _IMAGE = "<|endoftext|>", "<|startoftext|>", "<image>"


def save(
    family: str,
    folder: str | Path,
    *,
    seed: int = 0,
    text: str = TEXT,
    layers: int = 2,
    width: int = 32,
    heads: int = 4,
    positions: int = 64,
    vocab: int = 320,
    architecture: str | None = None,
) -> Path:
    """Write a tiny model and its tokenizer to ``folder`` and return it.

    Parameters
    ----------
    family
        A name in `ADAPTERS`.
    seed
        Decides the weights; the global generator is neither used nor moved.
    text
        What the tokenizer is trained on.
    vocab
        At most this many tokens: WordPiece for encoders, byte-level BPE (at least 257) for
        decoders.
    architecture
        Name of the transformers class; the family's bare or causal model where None.
    """
    where = Path(folder)
    kind = family_of(family)
    tokenizer = None
    if kind.tokens != "none":
        tokenizer = build_tokenizer(family, text, vocab=vocab, positions=positions)
    model = build(
        family,
        seed=seed,
        layers=layers,
        width=width,
        heads=heads,
        positions=positions,
        vocab=vocab if tokenizer is None else len(tokenizer),
        architecture=architecture,
    )
    with quiet():
        model.save_pretrained(str(where))
    if tokenizer is not None:
        tokenizer.save_pretrained(str(where))
    vision = kind.anatomy(model.config).vision
    if vision is not None:
        _save_processor(where, vision)
    return where


def _save_processor(folder: Path, vision: Vision) -> None:
    """Write how images become pixels: resized whole, then from bytes to numbers around 0."""
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": vision.height, "width": vision.width},
        "image_mean": [0.5, 0.4, 0.6],
        "image_std": [0.5, 0.3, 0.25],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1))


def image(seed: int, size: tuple[int, int] = (41, 53)) -> bytes:
    """Return a PNG file of random pixels, of some height and width."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def reading() -> list[str]:
    """Return the families whose rows are tokens, images among them or not."""
    shape = {"vocab": 320, "layers": 1, "width": 32, "heads": 4, "positions": 64}
    kinds = {name: family_of(name) for name in ADAPTERS.names()}
    seen = {name: kind.anatomy(kind.toy(**shape)).vision for name, kind in kinds.items()}
    return [name for name, vision in seen.items() if vision is None or vision.rows == "tokens"]


def build(
    family: str,
    *,
    seed: int = 0,
    layers: int = 2,
    width: int = 32,
    heads: int = 4,
    positions: int = 64,
    vocab: int = 320,
    architecture: str | None = None,
) -> Any:
    """Return a tiny Hugging Face model in evaluation mode, float32, with ``sdpa`` attention."""
    import transformers

    kind = family_of(family)
    config = kind.toy(vocab=vocab, layers=layers, width=width, heads=heads, positions=positions)
    causal = kind.anatomy(config).causal
    maker = architecture or getattr(kind, "maker", None)
    with torch.random.fork_rng(devices=[]):
        if maker is not None:
            model = getattr(transformers, maker)._from_config(config)
        elif causal:
            model = transformers.AutoModelForCausalLM.from_config(config)
        else:
            model = transformers.AutoModel.from_config(config)
    _fill(model, seed)
    return model.eval()


def build_tokenizer(family: str, text: str = TEXT, *, vocab: int = 320, positions: int = 64) -> Any:
    """Return a Hugging Face tokenizer of the family's kind, trained on ``text``."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    kind = family_of(family).tokens
    if kind == "wordpiece":
        names = dict(zip(("pad", "unk", "cls", "sep", "mask"), _BERT_SPECIALS, strict=True))
        core = _wordpiece(text, vocab)
    elif kind == "clip":
        names = dict.fromkeys(("eos", "pad", "unk"), _GPT_END) | {"bos": _CLIP_START}
        core = _byte_pairs(text, vocab, [_GPT_END, _CLIP_START])
        core.post_processor = processors.TemplateProcessing(
            single=f"{_CLIP_START} $A {_GPT_END}",
            special_tokens=[(_GPT_END, 0), (_CLIP_START, 1)],
        )
    else:
        names = dict.fromkeys(("bos", "eos", "pad", "unk"), _GPT_END)
        core = _byte_pairs(text, vocab, [_GPT_END])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=positions,
        **{f"{name}_token": token for name, token in names.items()},
    )
    if family == "llava":
        made.add_special_tokens({"additional_special_tokens": [_IMAGE]})
    return made


def _fill(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator) * _STD
            # A norm's gain starts at one; it is the only vector that does not start at zero.
            gain = weight.dim() == 1 and bool((weight == 1).all())
            weight.copy_(noise + 1.0 if gain else noise)


def _wordpiece(text: str, vocab: int) -> Any:
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    normalizer, cutter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    cut = cutter.pre_tokenize_str(normalizer.normalize_str(text))
    pieces = [*_BERT_SPECIALS, *_pieces([word for word, _ in cut], vocab - len(_BERT_SPECIALS))]
    table = {piece: number for number, piece in enumerate(pieces)}
    core = Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizer, cutter
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return core


def _pieces(words: list[str], count: int) -> list[str]:
    """Return every letter, then the words and endings that spell out most of the text.

    The trainer of `tokenizers` breaks ties between word pieces by chance; this order has none.
    """
    letters = {letter for word in words for letter in word}
    base = sorted(letters | {f"##{letter}" for letter in letters})
    spelled: Counter[str] = Counter()
    for word in words:
        spelled[word] += len(word)
        for size in range(2, min(5, len(word))):
            spelled[f"##{word[-size:]}"] += size
    ranked = sorted(spelled, key=lambda piece: (-spelled[piece], piece))
    return [*base, *[piece for piece in ranked if piece not in set(base)]][:count]


def _byte_pairs(text: str, vocab: int, specials: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    core.train_from_iterator(
        text.splitlines(),
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=specials,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return core
