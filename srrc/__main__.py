"""`python -m srrc` is `srrc`."""

from srrc.cli import main

main()
