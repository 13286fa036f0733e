"""What a job runs in: its context, the time limit of its worker, the settings of its process."""
