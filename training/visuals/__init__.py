"""Frames and curves as pictures, films and pages."""
