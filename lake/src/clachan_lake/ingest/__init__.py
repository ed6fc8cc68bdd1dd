"""The lake's HTTP service: `app` has the routes for ingestion, `reading` those for readers, `spool` receives a body,
`committer` puts chunks into the lake, `config` is what the service is told. `serve.py` above runs it all."""
