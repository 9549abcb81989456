"""Fixtures that all tests share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real samples and parity fixtures beside the project; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "parity").is_dir():
        pytest.skip("the folder `shared` with real samples is not beside the project")
    return folder


@pytest.fixture(autouse=True)
def _empty_memory_store() -> Iterator[None]:
    """What one test leaves under memory:// is gone before the next."""
    yield
    fsspec.filesystem("memory").store.clear()


def pytest_configure() -> None:
    # Processes that tests start inherit which signals are ignored, as nohup and shells do for what runs in the background.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long tests too")


# Folders and files with the longest tests come first, so that no worker is left with one at the end.
_LONGEST_FIRST = (
    "tests/faults/test_signals.py",
    "tests/integration/train/test_train_tokenizer.py",
    "tests/integration/train/test_train_tokenizer_faults.py",
    "tests/faults",
    "tests/integration",
    "tests/pipeline/processes",
    "tests/training/trainer",
    "tests/training",
)


def _rank(item: pytest.Item) -> int:
    return next((rank for rank, start in enumerate(_LONGEST_FIRST) if item.nodeid.startswith(start)), len(_LONGEST_FIRST))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_rank)
    if config.getoption("--soak"):
        return
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long; run with --soak"))
