"""Finds the cheapest way to build a model that keeps what it must."""
