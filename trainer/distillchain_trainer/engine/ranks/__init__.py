"""The processes that train one stage together."""
