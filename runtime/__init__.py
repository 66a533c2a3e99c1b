"""What ships with the artifact: nothing here imports the compiler."""
