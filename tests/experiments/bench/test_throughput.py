import json

import pytest

from toy_bench import bench
from unmask.experiments.bench.throughput import BENCH, Bench, words


def test_a_bench_is_read_back(tmp_path):
    """All of it; and whoever reads the file without this library finds plain figures in it."""
    found = bench()
    assert found.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / BENCH
    assert Bench.read(tmp_path / "new" / "folder" / BENCH) == found
    data = json.loads((tmp_path / "new" / "folder" / BENCH).read_text())
    assert data["baseline"]["random"] is True and data["plan"]["batches"] == [1, 8]
    assert data["rows"][0]["tokens_per_second"]["value"] == found.rows[0].tokens_per_second.value


def test_what_is_no_bench_is_refused_by_field(tmp_path):
    file = bench().save(tmp_path)
    data = json.loads(file.read_text())
    del data["rows"][0]["nfe"]
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"bench\.json\.rows\[0\]\.nfe is missing"):
        Bench.read(file)
    file.write_text(json.dumps(data)[:-9])
    with pytest.raises(ValueError, match=r"is not valid JSON.*unmask bench"):
        Bench.read(file)


def test_rows_of_a_step_count_grow_in_batch():
    assert [row.batch for row in bench(batches=(8, 1)).of(4)] == [1, 8]
    assert [row.steps for row in bench().of(None)] == [None, None]


def test_words_say_what_the_baseline_is_and_what_p95_rests_on():
    assert "drawn at random" in words(bench()) and "drawn at random" not in words(
        bench(random=False)
    )
    assert "3 pairs a row" in words(bench()) and "the two longest" in words(bench())
    assert "the two longest" not in words(bench(repeats=21))
