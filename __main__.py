"""`python -m svrt` is `svrt`."""

from .cli import main

if __name__ == "__main__":
    main()
