"""A user's module that cannot be imported."""

nothing_of_that_name  # noqa: B018, F821
