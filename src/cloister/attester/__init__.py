"""Makes evidence on the machine that serves."""
