"""Base methods that match the trajectories of experts: networks trained on real images."""
