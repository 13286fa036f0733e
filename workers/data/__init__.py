"""Datasets and synthetic sets: reading them in any layout, normalising them, keeping them as Arrow."""
