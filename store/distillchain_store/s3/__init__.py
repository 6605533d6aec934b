"""The store on S3 and on servers with its interface.

`store` has the operations, `connection` the client, `credentials` checks what the environment gives, `translation`
turns botocore's errors into those of the store. Nothing outside this package knows botocore.
"""
