"""`python -m fastrnn` is the command `fastrnn`."""

from .cli import main

main()
