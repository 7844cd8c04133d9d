"""`python -m mapet`, for torchrun and for machines where the `mapet` script is not on the path."""

from mapet.cli.main import main

if __name__ == "__main__":
    main()
