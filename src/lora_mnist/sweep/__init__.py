"""The bookkeeping of sweeps: no job is lost, run twice or overwritten.

Hydra's sweeper and launcher decide which jobs run and where. Before the first job ``session``
claims the sweep's folder. ``folder`` names each job's folder by what was swept and by a hash of all
that its numbers depend on, so the same job always has the same folder. ``job`` runs in the job's
process: it skips a job that has its results, and records one that fails. When the sweep ends,
``session`` prints ``summary``, made of what the jobs left, and the command to go on with.

Nothing here imports torch or knows what a job computes: columns and input files come from
``configs/sweep``, numbers from results.json.
"""
