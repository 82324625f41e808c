"""Real models by name, tiny models of every family, and real text to run them on."""
