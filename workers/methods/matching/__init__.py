"""Base methods that match what real and synthetic images do in a network: gradients, features, their means."""
