"""Fetching endorsements from vendors' services, over an injected transport."""
