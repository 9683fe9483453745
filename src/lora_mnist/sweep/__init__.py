"""Sweeps: no job is run twice, lost or overwritten, and all end in one summary.

Hydra's sweeper and launcher decide which jobs run and where. The folder of a job is named by what
the job computes, so that the same job always has the same folder; whether it is done stands there.

Nothing here imports torch or knows what a job computes: columns come from ``configs/sweep``,
numbers from results.json.
"""
