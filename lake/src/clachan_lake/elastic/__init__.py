"""Dask clusters of changing size: the scheduler says how many workers run, and each worker's place asks it."""
