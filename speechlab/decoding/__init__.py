"""Search: from a model's posteriors to token sequences. A leaf: of the house it imports errors only."""
