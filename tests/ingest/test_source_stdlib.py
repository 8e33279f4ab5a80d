"""Python's own text: the same documents each time, none of them twice."""

from __future__ import annotations

import itertools
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from ingest.sources.stdlib import StandardLibrary

ROOT = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def documents():
    return list(StandardLibrary().documents())


def test_topics_and_sources_are_there_under_their_names(documents):
    texts = {d.name: d.text for d in documents}
    assert len(texts) == len(documents) > 500
    assert {name: texts[f"topics/{name}"] for name in topics} == dict(topics)
    assert texts["json/decoder.py"] == (ROOT / "json" / "decoder.py").read_text(encoding="utf-8")


def test_tests_and_installed_packages_are_left_out(documents):
    parts = [set(Path(d.name).parts) for d in documents]
    assert not any({"test", "tests", "site-packages", "idle_test"} & mine for mine in parts)


def test_the_topics_are_not_there_a_second_time(documents):
    assert "pydoc_data/topics.py" not in {d.name for d in documents}
    assert "pydoc_data/topics.py" in StandardLibrary().inputs()


def test_the_order_is_seeded(documents):
    def first(seed):
        return [d.name for d in itertools.islice(StandardLibrary(order_seed=seed).documents(), 20)]

    assert first(0) == [d.name for d in documents[:20]]
    assert first(0) != first(1)


def test_no_document_is_empty_or_has_windows_lines(documents):
    assert all(d.text for d in documents)
    assert not any("\r\n" in d.text for d in documents)
