"""The protocol over HTTP, and the pages of a server."""
