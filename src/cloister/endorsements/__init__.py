"""Vendor chains, pinned roots and collateral."""
