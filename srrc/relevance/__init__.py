"""What a gate is worth: its scores, and how far the output moves when it drops units."""
