"""Bytes to records and back, one file per format. Nothing here is authenticated."""
