"""Load tests of the server."""
