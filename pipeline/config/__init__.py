"""The recipe, the catalog of data sets, and the command line that reads them."""
