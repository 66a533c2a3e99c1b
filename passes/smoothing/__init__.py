"""Moves the size of activations into weights."""
