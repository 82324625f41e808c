"""Budget to plan: spends a budget over the gates by marginal relevance per cost."""
