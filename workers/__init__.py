"""How one job is done: data, networks, the science of a stage, and the store; no Ray, no SLURM."""
