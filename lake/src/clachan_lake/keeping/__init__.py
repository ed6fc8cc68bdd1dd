"""Keeping a lake: which snapshots are in use, packing, backup and restore, verifying."""
