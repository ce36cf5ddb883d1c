"""Score files of many sequences with a model, on all cores of a machine."""
