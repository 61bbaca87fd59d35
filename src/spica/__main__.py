"""``python -m spica`` is ``spica``."""

from spica.cli import main

if __name__ == "__main__":
    main()
