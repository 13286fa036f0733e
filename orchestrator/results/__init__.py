"""What was measured: cells of experiments and of tables, comparisons, statistics."""
