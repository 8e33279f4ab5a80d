"""The measurement of object stores, small: requests are counted, times only told."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("object_store_latency.py")


@pytest.mark.slow  # the proxy waits
def test_a_window_takes_a_request_a_part_and_all_of_them_are_told(monkeypatch, capsys):
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "test")  # put back afterwards
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1")
    spec = importlib.util.spec_from_file_location("bench_object_store_latency", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows = script.main(["--parts", "1", "3", "--delays", "0", "20", "--repeats", "1"])
    assert [(row["parts"], row["requests"]) for row in rows if row["way"] == "again"] == [
        (1, 1),
        (3, 3),
    ]
    assert all(row["requests"] > row["parts"] for row in rows if row["way"] == "opening")
    assert capsys.readouterr().out.count("again") == 2
