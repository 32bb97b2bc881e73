"""Arrays: NumPy, HDF5 and Zarr files as rows of samples."""
