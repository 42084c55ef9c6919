from hypothesis import settings

# The first torch operation of a process takes longer than the default deadline of an example.
settings.register_profile("attnrl", deadline=None)
settings.load_profile("attnrl")
