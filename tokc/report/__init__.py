"""The cost-per-token report."""
