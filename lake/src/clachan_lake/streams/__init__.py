"""Streams: `chunk` is a chunk on its way in, `stream` the record's rules and the interface over them."""
