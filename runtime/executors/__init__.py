"""Runs one step of the model on a device."""
