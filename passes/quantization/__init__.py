"""The quantizer's core: grids, groups and packing."""
