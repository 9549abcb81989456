"""Finds, downloads and checks the files of published models."""
