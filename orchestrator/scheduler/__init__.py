"""Which job runs next and what follows from each event: pure, without clock, file or Ray."""
