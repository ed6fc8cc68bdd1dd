"""The forwarder: ships every file below a directory to an ingestion endpoint, each as a stream in chunks; and what
stands in no file, this machine's metrics and the platform's usage records (`recording`), over a spool.

What was acknowledged is remembered in SQLite (`state`), and every chunk carries an id made of its tag, place and
content, and its place: so what is sent again after a kill is known to the lake, and nothing is lost or doubled. When
the two sides disagree, the digest of what the lake has decides (`shipping`). Only the standard library: it runs on
every node, so it is small.
"""
