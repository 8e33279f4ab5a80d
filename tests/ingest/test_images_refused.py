"""Images and models that do not go together, and images that are none: refused, and named."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import IngestError, ModelError, SourceError
from ingest.models import load, toy
from ingest.models.pictures import Pictures
from ingest.run import ingest
from ingest.sources import SOURCES
from jobs.demo.sources import source_for
from jobs.runtimes.in_process import InProcess
from jobs.sequences import stored_sites


def run(url, model, source, sites, **options):
    tokens = TokensConfig(source=source, part_rows=256, **options)
    harvest = HarvestConfig(model=str(model), sites=sites, dtype="float32", batch=4)
    ingest(url, tokens, harvest, runtime=InProcess())
    return store.open(url)


def shown(image_folder, kind="images"):
    return SOURCES.get(kind)(paths=(str(image_folder),))


def test_sources_and_models_that_do_not_go_together(tmp_path, image_folder, seeing):
    url = tmp_path / "s"
    corpus = tmp_path / "texts"
    corpus.mkdir()
    (corpus / "a.txt").write_text(toy.TEXT)
    texts = SOURCES.get("text")(paths=(str(corpus),))
    for model, source, said in (
        ("llama", shown(image_folder), "takes texts, and the source gives images"),
        ("vit", texts, r"takes images.*--source images"),
        ("vit", shown(image_folder, "image_text"), "takes images"),
        ("llava", shown(image_folder), "takes images with texts"),
    ):
        with pytest.raises(ModelError, match=f"wrong-source.*{said}"):
            run(url, seeing[model], source, ("embed",))
    for options, kind in (
        ({"context": 32}, "setting-unused"),
        ({"packing": "fill"}, "setting-unused"),
    ):
        with pytest.raises(IngestError, match=kind):
            run(url, seeing["vit"], shown(image_folder), ("embed",), **options)
    with pytest.raises(IngestError, match=r"context-too-short.*an image takes 16"):
        run(url, seeing["llava"], shown(image_folder, "image_text"), ("embed",), context=12)
    assert not url.exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cannot be read"),
        (b"no image", "cannot be read"),
        (toy.image(1)[:-400], "cannot be read"),
    ],
    ids=["empty", "text", "cut short"],
)
def test_a_broken_image_is_named(tmp_path, image_folder, seeing, data, said):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(toy.image(0))
    (tmp_path / "images" / "b.png").write_bytes(data)
    with pytest.raises(SourceError, match=rf"image-broken.*'b\.png' {said}") as caught:
        run(tmp_path / "s", seeing["vit"], shown(tmp_path / "images"), ("embed",))
    assert caught.value.where["path"] == "b.png"
    (tmp_path / "images" / "b.png").write_bytes(toy.image(5))
    with pytest.raises(store.ActlakeError):  # other files are another corpus
        run(tmp_path / "s", seeing["vit"], shown(tmp_path / "images"), ("embed",))


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
def test_a_line_that_is_no_pair_is_named(tmp_path, seeing, line, said):
    (tmp_path / "a.png").write_bytes(toy.image(0))
    (tmp_path / "p.jsonl").write_text(json.dumps(line))
    with pytest.raises(SourceError, match=rf"corpus-unreadable: line p\.jsonl:1 .*{said}"):
        run(tmp_path / "s", seeing["clip"], shown(tmp_path, "image_text"), ("image.embed",))


def test_statistics_without_sites_leave_pixels_alone(tmp_path, image_folder, seeing):
    run(
        tmp_path / "s",
        seeing["vit"],
        shown(image_folder),
        ("blocks.0.resid_post", "blocks.1.attn.z"),
    )
    held = store.open(tmp_path / "s")
    assert stored_sites(held) == ["blocks.0.resid_post", "blocks.1.attn.z"]
    assert stored_sites(held, ["inputs"]) == ["pixels"]


def test_a_folder_of_images_is_a_corpus_of_images(image_folder, tmp_path):
    (tmp_path / "a.PNG").write_bytes(toy.image(0))
    assert source_for((str(tmp_path),), seed=None).kind == "images"
    assert source_for((str(image_folder),), seed=None).kind == "text"  # there are lines among them


def test_images_of_wide_pixels_are_refused_and_turned_ones_are_upright(tmp_path, seeing):
    pictures = Pictures.of(seeing["vit"])
    for mode, dtype in (("I;16", np.uint16), ("F", np.float32), ("I", np.int32)):
        file = io.BytesIO()
        Image.fromarray(np.ones((40, 40), dtype) * 9).save(file, "TIFF")
        with pytest.raises(SourceError, match=rf"image-broken.*mode {mode}"):
            pictures.pixels("x", file.getvalue())
    image = Image.open(io.BytesIO(toy.image(3, (60, 40))))
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


def test_texts_of_pairs_that_are_too_long_are_refused_or_cut(tmp_path, seeing):
    (tmp_path / "a.png").write_bytes(toy.image(0))
    line = {"image": "a.png", "text": "the mill " * 60}
    (tmp_path / "p.jsonl").write_text(json.dumps(line))
    source = SOURCES.get("image_text")
    with pytest.raises(SourceError, match=r"text-too-long.*takes 64.*too_long=cut"):
        run(tmp_path / "s", seeing["clip"], source(paths=(str(tmp_path),)), ("text.embed",))
    assert not (tmp_path / "s").exists()
    cut = source(paths=(str(tmp_path),), too_long="cut")
    held = run(tmp_path / "s", seeing["clip"], cut, ("text.embed",))
    assert held.gather("inputs:text", [0])[0, :, 1].tolist() == [1] * 64
    assert stored_sites(held) == ["text.embed"]
    with pytest.raises(SourceError, match="bad-source"):
        source(paths=("x",), too_long="keep")


def test_no_special_tokens_mean_nothing_to_patches(tmp_path, image_folder, seeing):
    with pytest.raises(IngestError, match=r"setting-unused.*--no-special-tokens"):
        run(tmp_path / "s", seeing["vit"], shown(image_folder), ("embed",), special_tokens=False)
