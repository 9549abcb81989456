"""Every command answers `--help`, `--version` and a wrong option at once: nothing heavy is imported for it."""

import configparser
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_origin

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "transformers", "deepspeed", "accelerate", "apache_beam", "tensorflow_datasets", "h5py", "gym_pusht")
CALL = """
import importlib, json, sys
module, function, *calls = sys.argv[1:]
statuses = []
for words in calls:
    sys.argv = ["command", *words.split()]
    try:
        statuses.append(getattr(importlib.import_module(module), function)())
    except SystemExit as ended:
        statuses.append(ended.code or 0)
print(json.dumps([statuses, sorted(sys.modules)]))
"""


def entry_points() -> dict[str, str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return dict(re.split(r"\s*=\s*", line) for line in lines if line.strip())


@pytest.mark.parametrize("command", sorted(entry_points()))
def test_help_a_version_and_a_wrong_option_import_nothing_heavy(command):
    module, function = entry_points()[command].split(":")
    words = [sys.executable, "-c", CALL, module, function, "--help", "--version", "--nonsense 3"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    statuses, imported = json.loads(done.stdout.splitlines()[-1])
    assert (statuses, [name for name in HEAVY if name in imported]) == ([0, 0, 2], []), done.stderr
    assert "Traceback" not in done.stderr


PARSERS = {
    "ingest": ("pipeline.__main__", "build_parser"),
    "inspect": ("tokenize_offline.inspect", "parser"),
    "tokenize": ("tokenize_offline.cli", "build_parser"),
    "train": ("training.__main__", "build_parser"),
    "train-tokenizer": ("training.cli.train_tokenizer", "build_parser"),
    "predict": ("training.cli.predict", "build_parser"),
    "play": ("training.cli.play", "build_parser"),
    "evaluate": ("training.cli.evaluate", "build_parser"),
    "demo": ("training.demo.run", "build_parser"),
}
PYTHONS_WORDS = re.compile(r"typing|class '|NoneType|Union|Literal|Parser key|namespace|Traceback|invalid \w+ value|_dir\b")


@pytest.mark.parametrize("command", sorted(PARSERS))
def test_no_option_of_any_command_answers_a_wrong_value_in_pythons_words(command, capsys):
    module, name = PARSERS[command]
    build = getattr(importlib.import_module(module), name)
    typed = {int: "many", float: "much", bool: "perhaps", list[int]: "many"}
    parser, tried = build(), 0
    for action in parser._actions:
        hint = getattr(action, "_typehint", None) or action.type
        wrong = next((text for kind, text in typed.items() if hint in (kind, kind | None)), None)
        if action.choices or get_origin(hint) is Literal:
            wrong = "nothing-of-the-sort"
        if wrong is None or not action.option_strings:
            continue
        tried += 1
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([action.option_strings[0], *[wrong] * (action.nargs if isinstance(action.nargs, int) else 1)])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and f"{action.option_strings[0]}: '{wrong}' is not " in said
        assert not PYTHONS_WORDS.search(said), said
    assert tried
