"""Listings follow links and skip what is not a file."""

import contextlib
import os
import zipfile

import pytest

from pipeline.common import storage


@pytest.fixture
def tree(tmp_path):
    """`data` with a file, a folder, and links to a file and a folder elsewhere."""
    elsewhere, data = tmp_path / "elsewhere", tmp_path / "data"
    for path in (elsewhere / "set" / "b.tar", data / "own" / "a.tar", data / "a.tar"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode() * 3)
    (data / "linked").symlink_to(elsewhere / "set")
    (data / "linked.tar").symlink_to(elsewhere / "set" / "b.tar")
    return data


def test_links_are_listed_as_their_targets(tree):
    assert storage.file_sizes(str(tree)) == {"a.tar": 15, "linked.tar": 15}
    assert storage.list_folders(str(tree)) == ["linked", "own"]
    assert list(storage.file_sizes(str(tree), nested=True)) == ["a.tar", "linked.tar", "linked/b.tar", "own/a.tar"]
    (tree / "again").symlink_to(tree / "own")
    assert storage.list_files(str(tree / "again")) == ["a.tar"]


def test_a_loop_of_links_is_followed_once(tree):
    (tree / "up").symlink_to(tree.parent)
    (tree / "linked" / "back").symlink_to(tree)
    (tree / "own" / "self").symlink_to(tree / "own")
    assert list(storage.file_sizes(str(tree), nested=True)) == ["a.tar", "linked.tar", "linked/b.tar", "own/a.tar"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_broken_link_and_a_pipe_are_not_files(tree, nested):
    before = storage.file_sizes(str(tree), nested)
    (tree / "lost.tar").symlink_to(tree / "gone.tar")
    os.mkfifo(tree / "pipe.tar")
    assert storage.file_sizes(str(tree), nested) == before


@pytest.mark.parametrize(
    "name", ["a::b", "x::memory:__y", "zip::a", "x::memory://other/b", "a#b", "a?b", "a%20b", "a*b", "[a]"]
)
def test_a_listed_name_is_never_parsed_as_a_url(name):
    storage.write_bytes(f"memory://names/{name}", b"content")
    assert list(storage.listing("memory://names", nested=True)) == [name]
    assert storage.read_bytes(storage.join("memory://names", name)) == b"content"


def test_a_chain_of_urls_is_still_opened(tmp_path):
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        packed.writestr("a.tar", b"content")
    assert storage.read_bytes(f"zip://a.tar::file://{tmp_path}/packed.zip") == b"content"


def test_a_file_deleted_during_the_listing_is_left_out(tree, monkeypatch):
    real = os.scandir

    @contextlib.contextmanager
    def scandir(folder):
        with real(folder) as opened:
            entries = list(opened)
        (tree / "a.tar").unlink(missing_ok=True)
        yield entries

    monkeypatch.setattr("pipeline.common.listings.os.scandir", scandir)
    assert list(storage.listing(str(tree))) == ["linked.tar"]
