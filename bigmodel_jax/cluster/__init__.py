"""Runs of several processes: joining a job, watching over its processes, and writing jobs for existing engines."""
