"""`python -m svrt` is `svrt`."""

from svrt.cli import main

if __name__ == "__main__":
    main()
