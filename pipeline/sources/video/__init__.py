"""Reads video files of any container, and Something-Something-v2."""
