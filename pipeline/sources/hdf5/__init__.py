"""Reads HDF5 data sets (RoboNet and VP2) in a separate process."""
