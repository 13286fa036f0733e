"""From a request to a graph of jobs, and what it would take: durations, makespan, budget."""
