"""``python -m ddq_search`` is the command line."""

from ddq_search.cli import main

if __name__ == "__main__":
    main()
