"""Procedural reasoning tasks, whose problems are made from a seed without a download.

To add a task, write a module with a `problems` function and add it to `TASKS`.
"""
