"""The benchmark on a card: what it can do, and what the loops make of it."""
