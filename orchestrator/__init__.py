"""When and where jobs run: the decision core, the driver, clusters, reports and the command line."""
