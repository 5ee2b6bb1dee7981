"""The container manager.

Nothing is imported here: the launcher of the process backend is part of this package and lives as long as each
container does, so it must stay small.
"""
