"""What a change did to the model's answers."""
