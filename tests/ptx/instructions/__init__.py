"""What each instruction does, a file a kind; `table` lists them all."""
