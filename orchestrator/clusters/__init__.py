"""Where runs can happen: the cluster file, Ray clusters of our own and of others, checks of a machine."""
