"""From a program to machine code, one folder a target."""
