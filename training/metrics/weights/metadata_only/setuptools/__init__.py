"""Replaces setuptools while pip downloads an archive (see `build_meta`)."""
