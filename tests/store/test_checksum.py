import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import checksum


@given(st.binary(max_size=300), st.integers(0, 300))
def test_the_slow_form_is_the_fast_form_in_any_pieces(data, cut):
    whole = checksum.crc32c(data)
    assert checksum.slow_extend(0, data) == whole
    assert checksum.extend(checksum.extend(0, data[:cut]), data[cut:]) == whole
    assert checksum.slow_extend(checksum.slow_extend(0, data[:cut]), data[cut:]) == whole


def test_all_kinds_of_buffers_agree():
    values = np.arange(100, dtype=np.float32).reshape(10, 10)
    data = values.tobytes()
    for form in (values, data, bytearray(data), memoryview(data), memoryview(bytearray(data))):
        assert checksum.crc32c(form) == checksum.crc32c(data)
    assert checksum.crc32c(values.T) == checksum.crc32c(np.ascontiguousarray(values.T))
    assert checksum.crc32c(memoryview(b"")) == checksum.crc32c(np.empty(0)) == 0


def test_without_the_fast_package_it_says_so_once_and_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    checksum._implementation.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="pip install google-crc32c"):
            assert checksum.crc32c(b"123456789") == 0xE3069283
        assert checksum.crc32c(b"123456789") == 0xE3069283
    finally:
        checksum._implementation.cache_clear()
