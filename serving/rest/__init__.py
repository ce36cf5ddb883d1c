"""The protocol over HTTP, and the page."""
