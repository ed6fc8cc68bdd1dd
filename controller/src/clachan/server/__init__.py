"""The controller: `api` (HTTP) -> `services` (what happens) -> `db` (what is kept); `decisions` are pure functions.

Views hold no SQL, services hold no HTTP. Every write is one transaction in a `services.controller.Change`; what it
touched is announced to the hub after the commit, and the hub wakes exactly the long polls that wait for it.
"""
