"""A run on SLURM: its jobs, how they are submitted, followed and given back."""
