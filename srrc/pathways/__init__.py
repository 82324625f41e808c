"""The kinds of pathway, one a file: how each is recognised, what it costs, and what bypasses it."""
