"""Tests and the benchmark of a card: `make gpu`."""
