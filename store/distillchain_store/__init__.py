"""The store: objects in S3 or in a folder, verified reads, and the conditional commit of a stage.

`opening` opens a store by its URI, `store` is the protocol, `folder` and `s3` implement it, `patience` says how long an
outage is waited out, `verified` reads committed files, `commit` writes them.
"""
