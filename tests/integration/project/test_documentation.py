"""What README.md and docs/ say can be typed: every command parses as it stands there, and files and links lead somewhere."""

import argparse
import configparser
import importlib
import re
import shlex
from pathlib import Path

import jsonargparse
import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Files that a reader has and this checkout hasn't.
RECIPES = ("RECIPE", "my-recipe.yaml", "s3://bucket/recipe.yaml")


class Parsed(BaseException):
    """A command line was understood; what follows is not run."""


def command_lines(page):
    """The lines of indented code blocks, continued ones joined."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if re.match(r" {4,}\S", line):
            yield line.strip()


def entry_points():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return dict(re.split(r"\s*=\s*", line) for line in lines if line.strip())


def as_called(line, scripts):
    """(module:function, arguments) of a command of this project, wherever it stands in a line; None of any other line."""
    try:
        words = shlex.split(line.split("||")[0], comments=True)
    except ValueError:
        return None
    if "..." in words or line.startswith(("$", "train=")):
        return None
    for place, word in enumerate(words):
        if word in scripts:
            return scripts[word], words[place + 1 :]
        if word == "-m" and words[place + 1].split(".")[0] in ("pipeline", "tokenize_offline", "training"):
            module = words[place + 1]
            main = module if "." in module else f"{module}.__main__"
            return f"{main}:main", words[place + 2 :]
    return None


SCRIPTS = entry_points()
COMMANDS = sorted({line for page in PAGES for line in command_lines(page) if as_called(line, SCRIPTS)})


def test_there_are_commands():
    assert {as_called(line, SCRIPTS)[0] for line in COMMANDS} >= set(SCRIPTS.values()) - {"training.demo.run:main"}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_documentation_parses(line, monkeypatch):
    for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):

        def parse(self, *given, original=parser.parse_args, **named):
            original(self, *given, **named)
            raise Parsed

        monkeypatch.setattr(parser, "parse_args", parse)
    monkeypatch.chdir(ROOT)
    where, arguments = as_called(line, SCRIPTS)
    module, function = where.split(":")
    arguments = ["configs/demo.yaml" if word in RECIPES else word for word in arguments]
    with pytest.raises(Parsed):
        getattr(importlib.import_module(module), function)(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"(?<![\w/.-])(?:configs|scripts|docs|tests)/[\w./-]*\w", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(other), f"{page.name} links to {target}"
