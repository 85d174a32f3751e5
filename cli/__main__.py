"""`python -m dmq_fx.cli` is `dmq`."""

from dmq_fx.cli import main

if __name__ == "__main__":
    main()
