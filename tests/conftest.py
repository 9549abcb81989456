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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--soak"):
        return
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long; run with --soak"))
