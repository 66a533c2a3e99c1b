"""The Triton kernels of the GPU targets, one family a file."""
