"""A real Kubernetes on this machine, for tests and for a person who wants to try a chain.

`python -m cluster up` makes one that lasts; `cluster.fixtures` makes those of the test suite. README.md has the API.
"""
