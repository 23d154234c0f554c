"""Procedural reasoning tasks: problems that are made from a seed and need no download.

To add one, write a module with a `problems` function and add it to `TASKS`.
"""
