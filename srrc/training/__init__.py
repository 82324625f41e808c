"""Relevance that is learned: gates from traces of the full model, then gates and adapters together."""
