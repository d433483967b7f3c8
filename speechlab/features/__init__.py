"""Features: one definition each, shared by extraction, training, decoding and inference."""
