"""Finding data: `entry` is what is known of a data set, `search` finds some, `dcat` writes all as a catalogue in
JSON-LD, `routes` serves them.

A *data set* is a stream or an array; `kind` says which. Its attributes `title`, `description`, `tags` (a list),
`owner`, `units` and `license` describe it; `source`, `source_kind` and `transformation` say what it was made from.
"""
