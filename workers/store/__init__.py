"""What is kept: finished artifacts by key, claims on keys, checkpoints of running jobs, expert trajectories."""
