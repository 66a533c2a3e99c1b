"""NVIDIA and AMD GPUs: kernels in Triton, compiled ahead of time, run over the driver's API."""
