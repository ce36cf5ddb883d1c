"""The commands `export`, `verify` and `inspect`."""
