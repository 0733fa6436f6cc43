"""Builds and measures machine images: the bytes that a platform measures, and what it will say."""
