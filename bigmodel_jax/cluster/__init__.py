"""Runs of several processes: joining a job, watching its processes, and submitting jobs to
schedulers."""
