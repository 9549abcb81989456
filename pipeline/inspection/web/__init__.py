"""The style sheet of pages that this package writes: a plain file beside this module, read as text and put into the page."""

from importlib.resources import files


def asset(name: str) -> str:
    """The text of one of this folder's files."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
