"""Find where the time of a step goes, from a profiler trace of some steps.

The time is divided among operations, modules and kinds of operations.
"""
