"""Commands print JSON for a program and a table on a terminal."""

import json
import os
import pty
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipeline.config.cli_output import block, cell, duration, show, size, table

SHOW = (
    "from types import SimpleNamespace\n"
    "from pipeline.config.cli_output import show\n"
    "show([{'dataset': 'a', 'clips': 4000}, {'dataset': 'b', 'clips': 5}], SimpleNamespace(json=%s), look_at='page.html')\n"
)


def on_a_terminal(code: str) -> str:
    """Returns the output of a program whose stdout is a terminal."""
    keeper, terminal = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=terminal, check=True)
    os.close(terminal)
    text = b""
    try:
        while part := os.read(keeper, 4096):
            text += part
    except OSError:  # Linux: the last writer has closed the terminal.
        pass
    os.close(keeper)
    return text.decode().replace("\r\n", "\n")


def test_a_terminal_gets_a_table_and_the_path_to_open():
    assert on_a_terminal(SHOW % False) == "dataset  clips\na        4,000\nb            5\n\nLook at page.html\n"


def test_a_terminal_gets_json_with_the_option_json():
    lines = on_a_terminal(SHOW % True).splitlines()
    assert [json.loads(line) for line in lines] == [{"dataset": "a", "clips": 4000}, {"dataset": "b", "clips": 5}]


def test_a_reader_that_closes_the_pipe_early_is_not_an_error():
    code = SHOW % True
    piped = ["bash", "-c", 'sleep 0.2; exec "$0" -c "$1"', sys.executable, code]
    with subprocess.Popen(piped, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0


def test_a_pipe_gets_one_line_of_json_per_result(capsys):
    show([{"a": 1}, {"a": 2}], SimpleNamespace(), look_at="elsewhere")
    assert capsys.readouterr().out == '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ids_per_second", 7912.4, "7,912"),
        ("rows_per_second", 21.1234, "21.12"),
        ("bytes", 123456789, "118 MiB"),
        ("seconds", 4000.0, "67 min"),
        ("shards", 12000, "12,000"),
        ("finished", True, "yes"),
        ("loss", None, "-"),
        ("loss", float("nan"), "nan"),
        ("samples", {"a": 3, "b": 5}, "a 3, b 5"),
        ("keys", list("abcdefgh"), "a, b, c, d, e, f and 2 more"),
    ],
)
def test_values_are_formatted_for_people(key, value, said):
    assert cell(value, key) == said


def test_rates_are_formatted_as_numbers_not_durations():
    assert cell(100.0, "seconds_per_frame") == "100" and cell(150.0, "seconds") == duration(150.0) == "2 min"
    assert size(0) == "0 B" and size(1 << 40) == "1 TiB"


def test_a_table_too_wide_for_the_terminal_becomes_blocks():
    rows = [{"dataset": "a" * 30, "folder": "b" * 30}] * 2
    assert len(table(rows, 80).splitlines()) == 3
    assert table(rows, 40) == block(rows[0]) + "\n\n" + block(rows[1])


def test_nested_values_come_below_their_name_and_empty_values_are_omitted():
    text = block({"output": "x", "failures": [], "results": {"one": {"psnr": 27.123}, "two": {"psnr": 2.5}}})
    assert text == "output  x\nresults\n        psnr\n  one  27.12\n  two    2.5"


def test_counts_by_reason_are_separated_by_semicolons():
    shown = block({"passed_over": {"files that end in .txt": 1, "arrays `depth`, which nothing reads": 58}})
    assert shown == "passed over  files that end in .txt: 1; arrays `depth`, which nothing reads: 58"
