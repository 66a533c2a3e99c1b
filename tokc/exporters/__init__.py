"""The way out: a program's weights and texts as the files that other programs read."""
