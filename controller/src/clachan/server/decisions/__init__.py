"""The controller's decisions: pure functions without I/O, SQL, HTTP, clock or randomness; those are passed in.

`addresses` gives nodes and slots their places in the plan; `argument_spec` turns a role's options into JSON Schema
and `parameters` judges a request by it; `references` follows values between instances; `allocation` chooses a node
and a slot; `revision` says whether a request is a new one; `inventory` builds what nodes and operators get;
`states` judges what nodes report; `usage` judges what they measured.
"""

from typing import NamedTuple


class Problem(NamedTuple):
    """One thing wrong with a request: the field of the error envelope, and the message in the house form."""

    field: str
    message: str
