from hypothesis import settings

# the machine is shared: how long an example took says nothing
settings.register_profile("decisions", deadline=None, database=None, max_examples=60)
settings.load_profile("decisions")
