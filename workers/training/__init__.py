"""Networks and how they are trained: augmentation, the SGD loop, transitions between stages."""
