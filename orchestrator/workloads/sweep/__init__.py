"""A sweep with Ray Tune: its trials, the mailbox between Tune and the driver, its report."""
