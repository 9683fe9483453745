"""The bookkeeping of sweeps: no job is lost, run twice or overwritten.

Hydra's sweeper and launcher decide which jobs run and where. The same job always has the same
folder, which ``jobs`` names.

Nothing here imports torch or knows what a job computes: columns and input files come from
``configs/sweep``, numbers from results.json.
"""
