"""The bookkeeping of sweeps: no job lost, none run twice, none overwritten.

Hydra's sweeper and launcher decide which jobs run and where; any of them will do. Ours is this:

1. ``session.open_sweep``, before the first job, claims the sweep's folder and writes
   ``sweep.json``: the commands so far, how jobs are ranked, and which keys all of them share.
2. ``folder.job_folder`` names each job's folder by what was swept and by a hash of the job's
   configuration and of the files it starts from. So the same job has the same folder, always.
3. ``job.run_swept``, in whatever process a job runs, skips it if ``results.json`` is there, leaves
   ``job.json`` (what it is, and why it failed), and lets the others go on if it fails.
4. ``session.close_sweep``, however the sweep ends, has ``summary`` read what the jobs left, and
   says with which command to go on: ``sweep.resume=FOLDER``.

Nothing here knows what a job computes: the table's columns, and the files that a job starts from,
come from the configuration (``configs/sweep``), the numbers from ``results.json``. No torch here.
"""
