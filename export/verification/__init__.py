"""A file is run and compared with the model that it came from."""
