"""The yardstick: the same mathematics as the project's, written the ordinary way in plain PyTorch.

Networks are plain modules, data comes through a `DataLoader`, the matching loss is one autograd graph, classes are
taken in a Python loop, and trajectories are lists of tensors in a file of `torch.save`. Random numbers are drawn from a
given generator in the order in which the project draws them, so both sides must give the same numbers up to rounding.
"""
