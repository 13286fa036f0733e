"""A synthetic set as a folder that needs nothing of this project."""
