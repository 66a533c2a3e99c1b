"""Serving load: what is asked, how fast it comes, what a client then waits for."""
