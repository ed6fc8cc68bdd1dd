"""Transformations: functions that run on what is new in streams and arrays.

`document` is what is declared, `declaring` and `remote` where that is done, `following` and `queue` which sources have
something new, `sources` gives it as batches, `engine` runs them and notes the `position`, `outputs` is where results
go, `calling` and `functions` find and call the function. `worker` is the process of all that, `keeper` looks after it.
`batch` is what a function works with; `wav` (with `riff`), `csv`, `jsonl`, `msgpack` (with `records`, `lines`) and
`minmax` are those that are built in, `options` their options.
"""
