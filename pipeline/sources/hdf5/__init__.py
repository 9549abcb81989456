"""HDF5 files, read in a process of their own, and the data sets that come in them: RoboNet and VP2."""
