"""One run: the driver, its pool of workers, its journal, and what can be told from it."""
