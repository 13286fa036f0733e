"""Base methods that train a network on the synthetic images and differentiate through that training."""
