"""How much does it cost, and how late is it?    python -m bench --help

Not part of the package: it is run from a checkout, against the trioagg that is in it.
"""
