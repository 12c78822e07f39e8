"""`python -m ray_distill`: the command where it is not installed, as in a job that brings this package along."""

from ray_distill.cli.main import main

main()
