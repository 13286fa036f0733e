"""When and where jobs run: the decision core, the driver, clusters, reports and the command line."""

SCRIPT = "pdd"
"""What the program is called where it is installed."""
MODULE = "orchestrator.launch"
"""What it is called by `python -m`."""
