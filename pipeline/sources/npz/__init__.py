"""Reads npz files with one episode each."""
