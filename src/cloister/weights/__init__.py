"""Weights that stay secret: the sealed format, making it, opening it, checking signatures."""
