"""Stands in for setuptools while pip downloads an archive; see `build_meta` beside it."""
