"""Listings: links are what they point to, and what is no file is none."""

import os

import pytest

from pipeline import storage


@pytest.fixture
def tree(tmp_path):
    """`data` with a file, a folder, and links to such elsewhere."""
    elsewhere, data = tmp_path / "elsewhere", tmp_path / "data"
    for path in (elsewhere / "set" / "b.tar", data / "own" / "a.tar", data / "a.tar"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode() * 3)
    (data / "linked").symlink_to(elsewhere / "set")
    (data / "linked.tar").symlink_to(elsewhere / "set" / "b.tar")
    return data


def test_links_to_files_and_folders_are_listed_as_what_they_point_to(tree):
    assert storage.file_sizes(str(tree)) == {"a.tar": 15, "linked.tar": 15}
    assert storage.list_folders(str(tree)) == ["linked", "own"]
    assert list(storage.file_sizes(str(tree), nested=True)) == ["a.tar", "linked.tar", "linked/b.tar", "own/a.tar"]
    (tree / "again").symlink_to(tree / "own")
    assert storage.list_files(str(tree / "again")) == ["a.tar"]


def test_links_that_lead_in_a_circle_are_followed_once(tree):
    (tree / "up").symlink_to(tree.parent)
    (tree / "linked" / "back").symlink_to(tree)
    (tree / "own" / "self").symlink_to(tree / "own")
    assert list(storage.file_sizes(str(tree), nested=True)) == ["a.tar", "linked.tar", "linked/b.tar", "own/a.tar"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_link_to_nothing_and_a_pipe_are_no_files(tree, nested):
    before = storage.file_sizes(str(tree), nested)
    (tree / "lost.tar").symlink_to(tree / "gone.tar")
    os.mkfifo(tree / "pipe.tar")
    assert storage.file_sizes(str(tree), nested) == before
