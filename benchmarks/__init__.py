"""Paired measurements of what sealing, verifying and importing cost. See docs/benchmarks.md."""
