"""Where the broker's root key lives: one module for each kind of place."""
