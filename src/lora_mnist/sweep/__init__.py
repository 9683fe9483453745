"""The bookkeeping of sweeps: no job lost, none run twice, none overwritten.

Hydra's sweeper and launcher decide which jobs run and where. This package names each job's folder
by its configuration, records what became of the job, skips what is finished, and sums up. It knows
nothing of what a job computes: the columns of its table, and the files that belong to a job's
identity, come from the configuration (``sweep``) and from ``results.json``.
"""
