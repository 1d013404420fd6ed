"""What holds for every test: no deadline on a property's examples; no test asserts a time."""

from hypothesis import settings

settings.register_profile("project", deadline=None)
settings.load_profile("project")
