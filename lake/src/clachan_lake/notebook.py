"""The extension of IPython that the lab's kernels load at their start (`--ext=clachan_lake.notebook`).

OpenBLAS takes a buffer of 32 MiB at its first product, and when there is no memory for it tries again for ever. So each
copy of it that is here, numpy's and scipy's, takes its buffer now, and a cell that needs too much gets a MemoryError.
"""

from contextlib import suppress
from typing import Any


def load_ipython_extension(_shell: Any) -> None:
    with suppress(ImportError):
        import numpy as np

        square = np.ones((512, 512))  # smaller ones go without a buffer
        square @ square
        from scipy.linalg import blas

        blas.dgemm(1.0, square, square)
