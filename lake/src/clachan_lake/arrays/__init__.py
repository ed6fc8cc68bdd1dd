"""Arrays: `index` plans which rows a key needs, `region` maps the bytes that `table` knows of, `flushing` makes of what
was stored into them what is committed, `opened` is all of it for one array, and `array` the interface over that."""
