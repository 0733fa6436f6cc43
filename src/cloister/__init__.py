"""Cloister: sealed inference that the person asking can check first."""
