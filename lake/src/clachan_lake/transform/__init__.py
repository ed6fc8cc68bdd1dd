"""Transformations: what is made of a stream when it has ended. `riff` reads WAV files, `wav` makes arrays of them,
`worker` is the process that runs what is due."""
