"""Measures tokc beside other programs; nothing of it ships."""
