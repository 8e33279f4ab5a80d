"""Images through a store: patches, pairs and tokens among which they stand; what does not go together refused."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import ModelError
from ingest.harvest import Harvester
from ingest.models import load, toy
from ingest.models.contract import Given
from ingest.models.pictures import Pictures
from ingest.part_rows import PartRows
from ingest.plan import Batching
from ingest.planning import plan
from ingest.run import _job, ingest, ingest_into
from ingest.showing import image_of, patches_of
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess
from store.tokens import FLAG_SPECIAL

TOWERS = ("vit", "dinov2", "clip_vision_model")
ROWS = 17  # a class token and 4 x 4 patches


def batch(count=2, rows=ROWS):
    ids = torch.zeros(count, rows, dtype=torch.long)
    return ids, torch.ones_like(ids)


def test_pixels_are_the_processors_to_the_bit_and_numbers_to_rounding(seeing):
    pictures = Pictures.of(seeing["vit"])
    data = toy.image(1)
    pixels = pictures.pixels("x", data)
    assert pixels.shape == (32, 32, 3)
    whole = pictures.processor(images=Image.open(io.BytesIO(data)), return_tensors="np")
    np.testing.assert_allclose(
        pictures.values(pixels[None])[0].numpy(), whole["pixel_values"][0], atol=1e-6
    )


def test_patches_put_together_are_the_image():
    image = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    patches = patches_of(image, 8)
    assert patches.shape == (15, 8, 8, 3)
    np.testing.assert_array_equal(patches[6], image[8:16, 8:16])
    np.testing.assert_array_equal(image_of(patches[None], (3, 5))[0], image)


def run(url, model, source, sites, **options):
    tokens = TokensConfig(source=source, part_rows=256, **options)
    harvest = HarvestConfig(model=str(model), sites=sites, dtype="float32", batch=4)
    ingest(url, tokens, harvest, runtime=InProcess())
    return store.open(url)


def shown(image_folder, kind="images"):
    return SOURCES.get(kind)(paths=(str(image_folder),))


@pytest.mark.parametrize("family", TOWERS)
def test_images_become_rows_of_patches(tmp_path, image_folder, seeing, family):
    sites = ("blocks.0.attn.z", "blocks.1.resid_post", "stat.norm.blocks.0.resid_post")
    held = run(tmp_path / "s", seeing[family], shown(image_folder), sites)
    sequences = held.arrow("sequences").to_pydict()
    assert sequences["rows"] == [ROWS] * 23
    assert set(sequences["grid"]) == {"4x4"}
    assert held.coverage["acts"].parts == 2
    tokens = held.arrow("tokens").to_pydict()
    special = [bool(flags & FLAG_SPECIAL) for flags in tokens["flags"]]
    assert special == [pos == 0 for pos in tokens["pos"]]
    loaded = load(seeing[family], dtype="float32")
    for first in (0, 4):  # batches of the harvest: at equal batches, equal bits
        files = [
            (image_folder / f"{number:02}.png").read_bytes() for number in range(first, first + 4)
        ]
        pixels = np.stack([loaded.pictures.pixels("x", data) for data in files])
        rows = np.array(tokens["row"][first * ROWS :][: 4 * ROWS])
        kept = held.gather("inputs:pixels", rows).reshape(4, ROWS, 8, 8, 3)
        for number in range(4):
            np.testing.assert_array_equal(kept[number, 1:], patches_of(pixels[number], 8))
        given = Given(pixels=loaded.pictures.values(pixels))
        values = loaded.adapter.capture(*batch(4), list(sites[:2]), given=given)
        for site, value in values.items():
            np.testing.assert_array_equal(held.gather(site, rows), value.flatten(0, 1).numpy())
    assert store.verify(held).ok
    before = held.digest()
    assert run(tmp_path / "s", seeing[family], shown(image_folder), sites).digest() == before


def test_another_model_of_the_same_patches_is_added_without_the_files(
    tmp_path, image_folder, seeing
):
    run(tmp_path / "s", seeing["vit"], shown(image_folder), ("blocks.1.resid_post",))
    harvest = HarvestConfig(
        model=str(seeing["dinov2"]),
        sites=("blocks.1.attn.scaled",),
        dtype="float32",
        batch=4,
        group="other",
    )
    ingest_into(tmp_path / "s", harvest, runtime=InProcess())
    direct = run(tmp_path / "t", seeing["dinov2"], shown(image_folder), ("blocks.1.attn.scaled",))
    rows = slice(0, 23 * ROWS)
    np.testing.assert_array_equal(
        store.open(tmp_path / "s").read("blocks.1.attn.scaled", rows),
        direct.read("blocks.1.attn.scaled", rows),
    )
    text = HarvestConfig(model=str(seeing["llama"]), sites=("embed",), group="no")
    with pytest.raises(ModelError, match=r"inputs-differ.*looks at texts"):
        ingest_into(tmp_path / "s", text, runtime=InProcess())


def test_a_clip_checkpoint_gives_what_the_source_shows(tmp_path, image_folder, seeing):
    vision = run(tmp_path / "v", seeing["clip"], shown(image_folder), ("blocks.1.resid_post",))
    assert vision.read("blocks.1.resid_post", slice(0, 5)).shape == (5, 64)
    corpus = tmp_path / "texts"
    corpus.mkdir()
    (corpus / "a.txt").write_text(toy.TEXT)
    text = run(
        tmp_path / "t", seeing["clip"], SOURCES.get("text")(paths=(str(corpus),)), ("embed",)
    )
    assert text.read("embed", slice(0, 5)).shape == (5, 32)
    sites = ("image.embed", "text.embed", "text.pooled")
    pairs = run(tmp_path / "p", seeing["clip"], shown(image_folder, "image_text"), sites)
    assert pairs.arrow("sequences").to_pydict()["rows"] == [1] * 23
    loaded = load(seeing["clip"], dtype="float32")
    texts = pairs.arrow("documents").to_pydict()["text"]
    encoded = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    pixels = [
        loaded.pictures.pixels("x", (image_folder / f"{n:02}.png").read_bytes()) for n in range(23)
    ]
    with torch.inference_mode():
        out = loaded.model(
            pixel_values=loaded.pictures.values(np.stack(pixels)),
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
        )
    for site, wanted in (("image.embed", out.image_embeds), ("text.embed", out.text_embeds)):
        mine = torch.from_numpy(np.array(pairs.read(site, slice(0, 23))))
        mine = mine / mine.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


def test_images_stand_among_the_tokens_of_a_decoder(tmp_path, image_folder, seeing):
    sites = ("blocks.1.resid_post", "blocks.0.attn.z", "loss")
    held = run(
        tmp_path / "s", seeing["llava"], shown(image_folder, "image_text"), sites, context=64
    )
    loaded = load(seeing["llava"], dtype="float32")
    token = loaded.adapter.vision.token
    tokens = {name: np.array(v) for name, v in held.arrow("tokens").to_pydict().items()}
    sequences = held.arrow("sequences").to_pydict()
    documents = held.arrow("documents").to_pydict()
    for number in (0, 11, 22):
        rows = tokens["seq_id"] == sequences["seq_id"][number]
        ids = tokens["token_id"][rows]
        assert (ids == token).sum() == 16
        pixels = loaded.pictures.pixels("x", (image_folder / f"{number:02}.png").read_bytes())
        text = loaded.tokenizer("\n" + documents["text"][number])["input_ids"]
        assert ids.tolist() == [token] * 16 + text
        given = {
            "input_ids": torch.from_numpy(ids.astype(np.int64))[None],
            "pixel_values": loaded.pictures.values(pixels[None]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        with torch.inference_mode():
            out = loaded.model(**given, output_hidden_states=True, use_cache=False)
        again = loaded.adapter.capture(
            given["input_ids"],
            given["attention_mask"],
            ["blocks.1.resid_pre"],
            given=Given(pixels=given["pixel_values"]),
        )
        torch.testing.assert_close(again["blocks.1.resid_pre"], out.hidden_states[1])
        for low, high, word in zip(
            tokens["char_start"][rows][17:],
            tokens["char_end"][rows][17:],
            loaded.tokenizer.batch_decode(ids[17:, None]),
            strict=True,
        ):
            assert documents["text"][number][low:high].strip() == word.strip()


def test_rows_among_tokens_are_the_batchs_own_bit_for_bit(tmp_path, image_folder, seeing):
    site = "blocks.1.resid_post"
    held = run(
        tmp_path / "s", seeing["llava"], shown(image_folder, "image_text"), (site,), context=64
    )
    loaded = load(seeing["llava"], dtype="float32")
    rows = PartRows.of(held, 0)
    (first, *_) = Batching(size=4).batches(rows.lengths.tolist(), loaded.adapter.max_positions)
    laid = rows.laid(first, loaded.tokenizer.pad_token_id)
    files = [(image_folder / f"{number:02}.png").read_bytes() for number in range(4)]
    pixels = np.stack([loaded.pictures.pixels("x", data) for data in files])
    value = loaded.adapter.capture(
        torch.from_numpy(laid.ids),
        torch.from_numpy(laid.mask),
        [site],
        given=Given(pixels=loaded.pictures.values(pixels)),
    )[site]
    own = value[torch.from_numpy(laid.real)].numpy()
    np.testing.assert_array_equal(held.read(site, slice(0, len(own))), own)


def test_plans_of_images_hold(tmp_path, image_folder, seeing):
    sites = ("blocks.1.resid_post",)
    tokens = TokensConfig(source=shown(image_folder), part_rows=256)
    harvest = HarvestConfig(model=str(seeing["vit"]), sites=sites, dtype="float32", batch=4)
    estimate = plan(tokens, harvest)
    held = run(tmp_path / "s", seeing["vit"], shown(image_folder), sites)
    assert estimate.rows == held.coverage["acts"].rows == 23 * ROWS
    assert estimate.flops > 0


# -- stores of images among other models ------------------------------------------------------------------------------


def add(url, model, group, sites=("embed",)):
    harvest = HarvestConfig(model=str(model), sites=sites, dtype="float32", batch=4, group=group)
    ingest_into(url, harvest, runtime=InProcess())
    return store.open(url)


def test_a_tower_of_clip_is_added_to_its_own_rows_and_to_others(tmp_path, image_folder, seeing):
    run(tmp_path / "c", seeing["clip"], shown(image_folder), ("embed",))
    assert add(tmp_path / "c", seeing["clip"], "again").coverage["again"].sealed
    run(tmp_path / "v", seeing["vit"], shown(image_folder), ("embed",))
    assert add(tmp_path / "v", seeing["clip"], "clip").coverage["clip"].sealed


def test_a_decoder_that_sees_is_added_to_rows_of_texts(tmp_path, seeing):
    (tmp_path / "a.txt").write_text(toy.TEXT)
    run(
        tmp_path / "s",
        seeing["llava"],
        SOURCES.get("text")(paths=(str(tmp_path / "a.txt"),)),
        ("embed",),
    )
    assert add(tmp_path / "s", seeing["llava"], "two").coverage["two"].sealed


def test_a_model_of_another_size_is_refused_before_its_group_is_there(
    tmp_path, image_folder, seeing
):
    from transformers import ViTConfig, ViTModel

    large = tmp_path / "large"
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=8
    )
    ViTModel(config).save_pretrained(large)
    settings = json.loads((seeing["vit"] / "preprocessor_config.json").read_text())
    settings["size"] = {"height": 64, "width": 64}
    (large / "preprocessor_config.json").write_text(json.dumps(settings))
    run(tmp_path / "s", seeing["vit"], shown(image_folder), ("embed",))
    with pytest.raises(ModelError, match=r"inputs-differ.*32 x 32.*looks at images of 64 x 64"):
        add(tmp_path / "s", large, "other")
    assert "other" not in store.open(tmp_path / "s").groups


def test_how_pixels_are_scaled_is_part_of_a_recipe_and_no_group_mixes_two(
    tmp_path, image_folder, seeing
):
    darker = tmp_path / "darker"
    import shutil

    shutil.copytree(seeing["vit"], darker)
    settings = json.loads((darker / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.1, 0.1, 0.1]
    (darker / "preprocessor_config.json").write_text(json.dumps(settings))
    held = run(tmp_path / "s", seeing["vit"], shown(image_folder), ("embed",))
    other = add(tmp_path / "s", darker, "darker")
    assert other.groups["darker"].recipe_hash != held.groups["acts"].recipe_hash
    assert not np.allclose(
        other.read("acts:embed", slice(1, 9)), other.read("darker:embed", slice(1, 9))
    )
    with pytest.raises(store.ConflictError, match="group-recipe"):
        add(tmp_path / "s", darker, "acts")


def test_special_tokens_around_images_and_text_are_part_of_the_recipe(tmp_path, image_folder):
    model = toy.save("llava", tmp_path / "m")
    path = model / "tokenizer.json"
    held = json.loads(path.read_text())
    end = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    held["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [end, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }
    path.write_text(json.dumps(held))
    source = shown(image_folder, "image_text")
    with_them = run(tmp_path / "a", model, source, ("embed",), context=64)
    without = run(tmp_path / "b", model, source, ("embed",), context=64, special_tokens=False)
    rows = [one.coverage["tokens"].rows for one in (with_them, without)]
    assert rows[0] == rows[1] + 23
    assert with_them.groups["tokens"].recipe_hash != without.groups["tokens"].recipe_hash


def test_a_worker_elsewhere_checks_how_its_model_has_pixels_scaled(tmp_path, image_folder):
    """Files that say so may differ between machines though weights are equal."""
    model = toy.save("vit", tmp_path / "m")
    run(tmp_path / "s", model, shown(image_folder), ("embed",))
    loaded = load(model, dtype="float32")
    config = HarvestConfig(model=str(model), sites=("embed",), dtype="float32", group="more")
    job = _job(store.open(tmp_path / "s"), config, loaded, ("embed",), ROWS, "images")
    path = model / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "image_std": [1.0, 1.0, 1.0]}))
    with pytest.raises(ModelError, match="model-differs"):
        Harvester(job)
