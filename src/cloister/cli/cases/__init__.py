"""Folders of recorded evidence (``case.json`` and its files), for ``cloister verify --case``."""
