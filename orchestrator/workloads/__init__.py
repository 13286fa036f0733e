"""What can be launched: experiments, the tables of the paper, sweeps."""
