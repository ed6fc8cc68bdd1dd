"""Arrays: `index` plans which rows a key needs, `chunks` keeps the bytes, `array` is both behind the interface."""
