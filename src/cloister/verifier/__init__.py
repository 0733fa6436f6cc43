"""Authenticates evidence and appraises it against policy and reference values."""
