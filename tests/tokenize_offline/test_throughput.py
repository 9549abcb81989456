"""The rate of an estimate is a number, or comes from the output of a run or benchmark."""

import json

import pytest

from pipeline.common.errors import ConfigError
from tokenize_offline.estimate import clips_per_second


@pytest.mark.parametrize(
    ("printed", "rate"),
    [
        ({"benchmark": "tokenize", "measured": 812.5, "ceiling": 850.0}, 812.5),
        ({"rows": 9, "rows_per_second": 6000.0, "processes": 8}, 750.0),
    ],
)
def test_the_rate_of_one_process_is_read_from_the_output(tmp_path, printed, rate):
    (tmp_path / "log").write_text(f"some warning\n{json.dumps(printed)}\n")
    assert clips_per_second(str(tmp_path / "log")) == rate
    assert clips_per_second("12.5") == 12.5


@pytest.mark.parametrize("text", ["", "[]", "no JSON", '{"rows_per_second": null, "processes": 1}', '{"benchmark": "ingest"}'])
def test_a_file_without_a_rate_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "log").write_text(text)
    with pytest.raises(ConfigError, match="log: its last line is not a result"):
        clips_per_second(str(tmp_path / "log"))


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "nowhere.json"])
def test_an_invalid_rate_is_an_error(text):
    with pytest.raises(ConfigError, match=f"--rate {text}"):
        clips_per_second(text)
