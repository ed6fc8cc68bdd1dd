"""A node's side: it fetches its slice, converges to it, checks, heals, accounts, reports, and needs the controller
for none of it but news.

pass      one look at the slice and at what was done of it (`planning`, pure); it starts runs and supplies
run       one ansible-playbook by ansible-runner for the hosts of one software artifact (`runs`)
settle    after a run: read the slot's etc/ (`slots`), supervise its services (`supervisor`), watch its promises
watch     the promises of the instances that were settled, on their own clocks (`watch`, `promises`)
memory    what was applied of which instance, state.db: the agent may be killed at any moment (`memory`)
spool     facts on their way to the controller, spool.db: at least once (`spool`, `link`)

One thread, the loop's, changes memory; the others fetch, run, check and send, and hand it what came out as events.
"""
