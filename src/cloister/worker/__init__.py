"""The sealed server."""
