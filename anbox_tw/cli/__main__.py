"""``python -m anbox_tw.cli``: the same as the ``anbox`` command."""

from anbox_tw.cli import main

if __name__ == "__main__":
    main()
