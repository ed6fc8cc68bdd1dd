"""Work that outlives who submitted it.

A *job* is a call of a function with its arguments, kept in the lake until a *worker* takes it and commits its result.

`call` packs a function, `value` its result; `document` is what is known of a job, `ledger` the changes that it may go
through; `job` is what a user has in hand, `local` and `remote` are where it is; `board` is the service's memory of
workers, `routes` its requests; `worker` takes jobs, `child` runs one in a process of its own, `running` is in it.

Only `running` ever loads what was submitted. What it returns is loaded by whoever says that he trusts it.
"""
