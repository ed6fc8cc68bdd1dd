"""Ingestion policies: what becomes of the data of a tag. `policy` is the document, `pattern` matches a tag, `naming`
makes names and attributes of it, `declaring` keeps policies in the lake, `dead` what none of them took."""
