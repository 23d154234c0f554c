"""Procedural reasoning tasks: problems made from a seed, without a download.

To add one, write a module with a `problems` function and add it to `TASKS`.
"""
