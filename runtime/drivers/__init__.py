"""Drives a GPU through its vendor's driver: memory, copies, kernels, graphs and events."""
