"""The Triton functions of the kernels, one family a file."""
