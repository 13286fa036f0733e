"""What can be run: specs, keys and graphs of jobs, recipes, experiments, costs.

Everything here is pure and quick, without torch, Ray, Submitit or pyarrow: `jobs.specs` says what each kind
of job is told, `jobs.keys` names a job by all that can change its result, `jobs.graph` holds each job once,
`jobs.recipe` and `jobs.experiment` turn what a user writes into a graph, `jobs.cost` estimates its work.
"""
