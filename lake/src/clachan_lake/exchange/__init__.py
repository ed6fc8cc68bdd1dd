"""Arrays in other programs' formats: `npy` and `zarr` in both directions, `wav` for sound, `dask` for computing.

Each goes block by block, so that no array is ever whole in memory. What is written appears when it is whole (`whole`);
what is read becomes an array only when all of it could be read (`filling`).
"""
