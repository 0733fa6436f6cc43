"""What computes tokens, and the sandbox around it."""
