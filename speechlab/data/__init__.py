"""From manifests to batches: text, tokens, samplers, augmentation."""
