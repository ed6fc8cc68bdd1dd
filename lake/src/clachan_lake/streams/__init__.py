"""Streams: `chunk` is a chunk on its way in, `extents` the files that chunks share, `stream` the record's rules and the
interface over them."""
