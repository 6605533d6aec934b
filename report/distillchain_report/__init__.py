"""The report on a chain: one page made from what is in its store. Only `load` reads the store; the rest is pure.

`load` reads committed stages, `build` turns them into a `Report`, `render` writes it as HTML, Markdown or JSON. What
only one task type needs is in `sections/<task type>`.
"""
