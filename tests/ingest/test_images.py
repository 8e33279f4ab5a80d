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
from ingest.errors import IngestError, ModelError, SourceError
from ingest.models import load, toy
from ingest.models.contract import Given
from ingest.models.pictures import Pictures
from ingest.picturing import patches_of
from ingest.planning import plan
from ingest.run import ingest, ingest_into
from ingest.showing import image_of
from ingest.sources import SOURCES
from jobs.demo.sources import source_for
from jobs.runtimes.in_process import InProcess
from jobs.sequences import stored_sites
from store.tokens import FLAG_SPECIAL

TOWERS = ("vit", "dinov2", "clip_vision_model")
ROWS = 17  # a class token and 4 x 4 patches


def batch(count=2, rows=ROWS):
    ids = torch.zeros(count, rows, dtype=torch.long)
    return ids, torch.ones_like(ids)


# -- files ---------------------------------------------------------------------------------------------------------


def png(seed, size=(41, 53)):
    generator = np.random.default_rng(seed)
    block = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(block).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("images")
    for number in range(23):
        (where / f"{number:02}.png").write_bytes(png(number, (30 + number, 50)))
    lines = [
        {"image": f"{number:02}.png", "text": f"the mill, seen {number} times"}
        for number in range(23)
    ]
    (where / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return where


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        name: toy.save(name, root / name)
        for name in (*TOWERS, "clip", "clip_text_model", "llava", "llama")
    }


def test_pixels_are_the_processors_to_the_bit_and_numbers_to_rounding(models):
    pictures = Pictures.of(models["vit"])
    data = png(1)
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


def shown(folder, kind="images"):
    return SOURCES.get(kind)(paths=(str(folder),))


@pytest.mark.parametrize("family", TOWERS)
def test_images_become_rows_of_patches(tmp_path, folder, models, family):
    sites = ("blocks.0.attn.z", "blocks.1.resid_post", "stat.norm.blocks.0.resid_post")
    held = run(tmp_path / "s", models[family], shown(folder), sites)
    sequences = held.arrow("sequences").to_pydict()
    assert sequences["rows"] == [ROWS] * 23
    assert set(sequences["grid"]) == {"4x4"}
    assert held.coverage["acts"].parts == 2
    tokens = held.arrow("tokens").to_pydict()
    special = [bool(flags & FLAG_SPECIAL) for flags in tokens["flags"]]
    assert special == [pos == 0 for pos in tokens["pos"]]
    loaded = load(models[family], dtype="float32")
    for number in (0, 22):
        pixels = loaded.pictures.pixels("x", (folder / f"{number:02}.png").read_bytes())
        rows = np.array(tokens["row"][number * ROWS :][:ROWS])
        np.testing.assert_array_equal(held.gather("inputs:pixels", rows)[1:], patches_of(pixels, 8))
        alone = loaded.adapter.capture(
            *batch(1), list(sites[:2]), given=Given(pixels=loaded.pictures.values(pixels[None]))
        )
        for site, value in alone.items():
            np.testing.assert_allclose(
                held.gather(site, rows), value[0].numpy(), rtol=1e-4, atol=1e-4
            )
    assert store.verify(held).ok
    before = held.digest()
    assert run(tmp_path / "s", models[family], shown(folder), sites).digest() == before


def test_another_model_of_the_same_patches_is_added_without_the_files(tmp_path, folder, models):
    run(tmp_path / "s", models["vit"], shown(folder), ("blocks.1.resid_post",))
    harvest = HarvestConfig(
        model=str(models["dinov2"]),
        sites=("blocks.1.attn.scaled",),
        dtype="float32",
        batch=4,
        group="other",
    )
    ingest_into(tmp_path / "s", harvest, runtime=InProcess())
    direct = run(tmp_path / "t", models["dinov2"], shown(folder), ("blocks.1.attn.scaled",))
    rows = slice(0, 23 * ROWS)
    np.testing.assert_array_equal(
        store.open(tmp_path / "s").read("blocks.1.attn.scaled", rows),
        direct.read("blocks.1.attn.scaled", rows),
    )
    text = HarvestConfig(model=str(models["llama"]), sites=("embed",), group="no")
    with pytest.raises(ModelError, match=r"inputs-differ.*looks at texts"):
        ingest_into(tmp_path / "s", text, runtime=InProcess())


def test_a_clip_checkpoint_gives_what_the_source_shows(tmp_path, folder, models):
    vision = run(tmp_path / "v", models["clip"], shown(folder), ("blocks.1.resid_post",))
    assert vision.read("blocks.1.resid_post", slice(0, 5)).shape == (5, 64)
    corpus = tmp_path / "texts"
    corpus.mkdir()
    (corpus / "a.txt").write_text(toy.TEXT)
    text = run(
        tmp_path / "t", models["clip"], SOURCES.get("text")(paths=(str(corpus),)), ("embed",)
    )
    assert text.read("embed", slice(0, 5)).shape == (5, 32)
    sites = ("image.embed", "text.embed", "text.pooled")
    pairs = run(tmp_path / "p", models["clip"], shown(folder, "image_text"), sites)
    assert pairs.arrow("sequences").to_pydict()["rows"] == [1] * 23
    loaded = load(models["clip"], dtype="float32")
    texts = pairs.arrow("documents").to_pydict()["text"]
    encoded = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    pixels = [loaded.pictures.pixels("x", (folder / f"{n:02}.png").read_bytes()) for n in range(23)]
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


def test_images_stand_among_the_tokens_of_a_decoder(tmp_path, folder, models):
    sites = ("blocks.1.resid_post", "blocks.0.attn.z", "loss")
    held = run(tmp_path / "s", models["llava"], shown(folder, "image_text"), sites, context=64)
    loaded = load(models["llava"], dtype="float32")
    token = loaded.adapter.vision.token
    tokens = {name: np.array(v) for name, v in held.arrow("tokens").to_pydict().items()}
    sequences = held.arrow("sequences").to_pydict()
    documents = held.arrow("documents").to_pydict()
    for number in (0, 11, 22):
        rows = tokens["seq_id"] == sequences["seq_id"][number]
        ids = tokens["token_id"][rows]
        assert (ids == token).sum() == 16
        pixels = loaded.pictures.pixels("x", (folder / f"{number:02}.png").read_bytes())
        text = loaded.tokenizer("\n" + documents["text"][number])["input_ids"]
        assert ids.tolist() == [token] * 16 + text
        given = {
            "input_ids": torch.from_numpy(ids.astype(np.int64))[None],
            "pixel_values": loaded.pictures.values(pixels[None]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        with torch.inference_mode():
            out = loaded.model(**given, output_hidden_states=True, use_cache=False)
        mine = held.gather("blocks.1.resid_post", tokens["row"][rows])
        again = loaded.adapter.capture(
            given["input_ids"],
            given["attention_mask"],
            ["blocks.1.resid_pre", "blocks.1.resid_post"],
            given=Given(pixels=given["pixel_values"]),
        )
        torch.testing.assert_close(again["blocks.1.resid_pre"], out.hidden_states[1])
        np.testing.assert_allclose(
            mine, again["blocks.1.resid_post"][0].numpy(), rtol=1e-4, atol=1e-4
        )
        for low, high, word in zip(
            tokens["char_start"][rows][17:],
            tokens["char_end"][rows][17:],
            loaded.tokenizer.batch_decode(ids[17:, None]),
            strict=True,
        ):
            assert documents["text"][number][low:high].strip() == word.strip()


def test_plans_of_images_hold(tmp_path, folder, models):
    sites = ("blocks.1.resid_post",)
    tokens = TokensConfig(source=shown(folder), part_rows=256)
    harvest = HarvestConfig(model=str(models["vit"]), sites=sites, dtype="float32", batch=4)
    estimate = plan(tokens, harvest)
    held = run(tmp_path / "s", models["vit"], shown(folder), sites)
    assert estimate.rows == held.coverage["acts"].rows == 23 * ROWS
    assert estimate.flops > 0


# -- what does not go together ---------------------------------------------------------------------------------------


def test_sources_and_models_that_do_not_go_together(tmp_path, folder, models):
    url = tmp_path / "s"
    corpus = tmp_path / "texts"
    corpus.mkdir()
    (corpus / "a.txt").write_text(toy.TEXT)
    texts = SOURCES.get("text")(paths=(str(corpus),))
    for model, source, said in (
        ("llama", shown(folder), "takes texts, and the source gives images"),
        ("vit", texts, r"takes images.*--source images"),
        ("vit", shown(folder, "image_text"), "takes images"),
        ("llava", shown(folder), "takes images with texts"),
    ):
        with pytest.raises(ModelError, match=f"wrong-source.*{said}"):
            run(url, models[model], source, ("embed",))
    for options, kind in (
        ({"context": 32}, "setting-unused"),
        ({"packing": "fill"}, "setting-unused"),
    ):
        with pytest.raises(IngestError, match=kind):
            run(url, models["vit"], shown(folder), ("embed",), **options)
    with pytest.raises(IngestError, match=r"context-too-short.*an image takes 16"):
        run(url, models["llava"], shown(folder, "image_text"), ("embed",), context=12)
    assert not url.exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "cannot be read"), (b"no image", "cannot be read"), (png(1)[:-400], "cannot be read")],
    ids=["empty", "text", "cut short"],
)
def test_a_broken_image_is_named(tmp_path, folder, models, data, said):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(0))
    (tmp_path / "images" / "b.png").write_bytes(data)
    with pytest.raises(SourceError, match=rf"image-broken.*'b\.png' {said}") as caught:
        run(tmp_path / "s", models["vit"], shown(tmp_path / "images"), ("embed",))
    assert caught.value.where["path"] == "b.png"
    (tmp_path / "images" / "b.png").write_bytes(png(5))
    with pytest.raises(store.ActlakeError):  # other files are another corpus
        run(tmp_path / "s", models["vit"], shown(tmp_path / "images"), ("embed",))


def test_a_model_without_its_processor_is_refused(tmp_path):
    where = toy.save("vit", tmp_path / "m")
    (where / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"processor-missing.*preprocessor_config\.json"):
        load(where)
    (where / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="model-broken"):
        load(where)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"image": "none.png", "text": "x"}, "'none.png' is no file"),
        ({"image": 3, "text": "x"}, "is no path"),
        ({"image": "a.png", "text": " "}, "is no text"),
        ({"picture": "a.png"}, "it has no image, text"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path, models, line, said):
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "p.jsonl").write_text(json.dumps(line))
    with pytest.raises(SourceError, match=rf"corpus-unreadable: line p\.jsonl:1 .*{said}"):
        run(tmp_path / "s", models["clip"], shown(tmp_path, "image_text"), ("image.embed",))


def test_statistics_without_sites_leave_pixels_alone(tmp_path, folder, models):
    run(tmp_path / "s", models["vit"], shown(folder), ("blocks.0.resid_post", "blocks.1.attn.z"))
    held = store.open(tmp_path / "s")
    assert stored_sites(held) == ["blocks.0.resid_post", "blocks.1.attn.z"]
    assert stored_sites(held, ["inputs"]) == ["pixels"]


def test_a_folder_of_images_is_a_corpus_of_images(folder, tmp_path):
    (tmp_path / "a.PNG").write_bytes(png(0))
    assert source_for((str(tmp_path),), seed=None).kind == "images"
    assert source_for((str(folder),), seed=None).kind == "text"  # there are lines among them


# -- stores of images among other models ------------------------------------------------------------------------------


def add(url, model, group, sites=("embed",)):
    harvest = HarvestConfig(model=str(model), sites=sites, dtype="float32", batch=4, group=group)
    ingest_into(url, harvest, runtime=InProcess())
    return store.open(url)


def test_a_tower_of_clip_is_added_to_its_own_rows_and_to_others(tmp_path, folder, models):
    run(tmp_path / "c", models["clip"], shown(folder), ("embed",))
    assert add(tmp_path / "c", models["clip"], "again").coverage["again"].sealed
    run(tmp_path / "v", models["vit"], shown(folder), ("embed",))
    assert add(tmp_path / "v", models["clip"], "clip").coverage["clip"].sealed


def test_a_decoder_that_sees_is_added_to_rows_of_texts(tmp_path, models):
    (tmp_path / "a.txt").write_text(toy.TEXT)
    run(
        tmp_path / "s",
        models["llava"],
        SOURCES.get("text")(paths=(str(tmp_path / "a.txt"),)),
        ("embed",),
    )
    assert add(tmp_path / "s", models["llava"], "two").coverage["two"].sealed


def test_a_model_of_another_size_is_refused_before_its_group_is_there(tmp_path, folder, models):
    from transformers import ViTConfig, ViTModel

    large = tmp_path / "large"
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=8
    )
    ViTModel(config).save_pretrained(large)
    settings = json.loads((models["vit"] / "preprocessor_config.json").read_text())
    settings["size"] = {"height": 64, "width": 64}
    (large / "preprocessor_config.json").write_text(json.dumps(settings))
    run(tmp_path / "s", models["vit"], shown(folder), ("embed",))
    with pytest.raises(ModelError, match=r"inputs-differ.*32 x 32.*looks at images of 64 x 64"):
        add(tmp_path / "s", large, "other")
    assert "other" not in store.open(tmp_path / "s").groups


def test_how_pixels_are_scaled_is_part_of_a_recipe_and_no_group_mixes_two(tmp_path, folder, models):
    darker = tmp_path / "darker"
    import shutil

    shutil.copytree(models["vit"], darker)
    settings = json.loads((darker / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.1, 0.1, 0.1]
    (darker / "preprocessor_config.json").write_text(json.dumps(settings))
    held = run(tmp_path / "s", models["vit"], shown(folder), ("embed",))
    other = add(tmp_path / "s", darker, "darker")
    assert other.groups["darker"].recipe_hash != held.groups["acts"].recipe_hash
    assert not np.allclose(
        other.read("acts:embed", slice(1, 9)), other.read("darker:embed", slice(1, 9))
    )
    with pytest.raises(store.ConflictError, match="group-recipe"):
        add(tmp_path / "s", darker, "acts")


def test_special_tokens_around_images_and_text_are_part_of_the_recipe(tmp_path, folder):
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
    source = shown(folder, "image_text")
    with_them = run(tmp_path / "a", model, source, ("embed",), context=64)
    without = run(tmp_path / "b", model, source, ("embed",), context=64, special_tokens=False)
    rows = [one.coverage["tokens"].rows for one in (with_them, without)]
    assert rows[0] == rows[1] + 23
    assert with_them.groups["tokens"].recipe_hash != without.groups["tokens"].recipe_hash


def test_images_of_wide_pixels_are_refused_and_turned_ones_are_upright(tmp_path, models):
    pictures = Pictures.of(models["vit"])
    for mode, dtype in (("I;16", np.uint16), ("F", np.float32), ("I", np.int32)):
        file = io.BytesIO()
        Image.fromarray(np.ones((40, 40), dtype) * 9).save(file, "TIFF")
        with pytest.raises(SourceError, match=rf"image-broken.*mode {mode}"):
            pictures.pixels("x", file.getvalue())
    image = Image.open(io.BytesIO(png(3, (60, 40))))
    turned, plain = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    image.save(turned, "PNG", exif=exif)
    image.rotate(-90, expand=True).save(plain, "PNG")
    np.testing.assert_array_equal(
        pictures.pixels("x", turned.getvalue()), pictures.pixels("x", plain.getvalue())
    )
    for mode in ("RGBA", "P", "1", "L", "CMYK"):
        file = io.BytesIO()
        image.convert(mode).save(file, "TIFF")
        assert pictures.pixels("x", file.getvalue()).shape == (32, 32, 3)


def test_texts_of_pairs_that_are_too_long_are_refused_or_cut(tmp_path, models):
    (tmp_path / "a.png").write_bytes(png(0))
    line = {"image": "a.png", "text": "the mill " * 60}
    (tmp_path / "p.jsonl").write_text(json.dumps(line))
    source = SOURCES.get("image_text")
    with pytest.raises(SourceError, match=r"text-too-long.*takes 64.*too_long=cut"):
        run(tmp_path / "s", models["clip"], source(paths=(str(tmp_path),)), ("text.embed",))
    assert not (tmp_path / "s").exists()
    cut = source(paths=(str(tmp_path),), too_long="cut")
    held = run(tmp_path / "s", models["clip"], cut, ("text.embed",))
    assert held.gather("inputs:text", [0])[0, :, 1].tolist() == [1] * 64
    assert stored_sites(held) == ["text.embed"]
    with pytest.raises(SourceError, match="bad-source"):
        source(paths=("x",), too_long="keep")


def test_no_special_tokens_mean_nothing_to_patches(tmp_path, folder, models):
    with pytest.raises(IngestError, match=r"setting-unused.*--no-special-tokens"):
        run(tmp_path / "s", models["vit"], shown(folder), ("embed",), special_tokens=False)
