"""Base methods that solve for a network's last layer by ridge regression and learn images by what it predicts."""
