import json

import pytest

from toy_bench import bench
from unmask.experiments.bench.bench_results import BENCH, Bench


def test_a_bench_is_read_back(tmp_path):
    written = bench()
    assert written.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / BENCH
    assert Bench.read(tmp_path / "new" / "folder" / BENCH) == written


def test_the_file_holds_plain_values(tmp_path):
    written = bench()
    data = json.loads(written.save(tmp_path).read_text())
    assert data["baseline"]["random"] is True and data["plan"]["batches"] == [1, 8]
    rate = written.rows[0].tokens_per_second
    assert data["rows"][0]["tokens_per_second"]["value"] == rate.value


def test_a_broken_bench_is_refused_by_field(tmp_path):
    file = bench().save(tmp_path)
    data = json.loads(file.read_text())
    del data["rows"][0]["nfe"]
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"bench\.json\.rows\[0\]\.nfe"):
        Bench.read(file)
    file.write_text(json.dumps(data)[:-9])
    with pytest.raises(ValueError, match=r"JSON.*unmask bench"):
        Bench.read(file)


def test_rows_of_a_step_count_ascend_in_batch():
    assert [row.batch for row in bench(batches=(8, 1)).rows_of(4)] == [1, 8]
    assert [row.steps for row in bench().rows_of(None)] == [None, None]


def test_the_words_describe_baseline_and_quantile():
    assert "drawn at random" in bench().protocol_words
    assert "drawn at random" not in bench(random=False).protocol_words
    assert "3 pairs" in bench().protocol_words and "two longest" in bench().protocol_words
    assert "two longest" not in bench(repeats=21).protocol_words
