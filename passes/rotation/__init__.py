"""Rotations of the residual stream: the matrices, where they go, and how weights take them in."""
