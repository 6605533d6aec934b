"""A real Kubernetes on this machine, for tests and for users who want to try a chain.

`python -m cluster up` starts one that keeps running; `cluster.fixtures` starts those of the tests. The API is in README.md.
"""
