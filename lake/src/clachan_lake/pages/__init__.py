"""The pages: a catalogue with search, a page for each data set, gadgets for other pages' frames, and the login.

`routes` has them, `shield` is what every answer says to a browser, `showing` makes numbers readable, `assets` gives the
files in `static/`. Templates escape all they are given; a name or an attribute is never markup, script or a path.
"""
