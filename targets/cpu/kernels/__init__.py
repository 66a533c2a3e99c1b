"""CPU kernels, one family a file."""
