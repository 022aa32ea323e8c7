from __future__ import annotations

import errno
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearnbench import storage
from unlearnbench.errors import RecordError, StorageError
from unlearnbench.storage import digest, read_json, read_rows, rows_as_bytes, write_bytes, write_json

TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), TEXT | st.integers() | st.none() | st.lists(st.floats(-1, 1)))))
def test_rows_come_back_as_they_were(rows):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.gz"
        path.write_bytes(rows_as_bytes(rows))
        assert read_rows(path) == rows


def test_equal_rows_are_equal_bytes():
    assert rows_as_bytes([{"b": 1, "a": "x"}]) == rows_as_bytes([{"a": "x", "b": 1}])


def test_numbers_that_are_not_finite_read_back_as_themselves(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.inf, "b": [-math.inf, math.nan]})
    stored = json.loads((tmp_path / "x.json").read_text())
    assert float(stored["a"]) == math.inf
    assert float(stored["b"][0]) == -math.inf
    assert math.isnan(float(stored["b"][1]))
    assert digest({"a": math.inf}) != digest({"a": -math.inf})


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"old": True})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match="free some space"):
        write_bytes(path, b"new")
    assert json.loads(path.read_text()) == {"old": True}
    assert os.listdir(tmp_path) == ["x.json"]


def test_broken_files_name_themselves_and_the_remedy(tmp_path):
    with pytest.raises(RecordError, match="does not exist; do this"):
        read_json(tmp_path / "no.json", "do this")
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(RecordError, match=r"cut.json is not valid JSON .*; do this"):
        read_json(tmp_path / "cut.json", "do this")
    whole = rows_as_bytes([{"a": 1}])
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="cannot be read"):
        read_rows(tmp_path / "cut.gz")
