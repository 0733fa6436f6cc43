"""Authentication: signatures, chains and bindings, one file per evidence format."""
