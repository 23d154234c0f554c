"""Advantage estimators, their order statistics, objectives, and the schedule of K."""
