"""``python -m router`` is the command ``pixelroute``."""

from router.cli import main

if __name__ == "__main__":
    main(prog_name="pixelroute")
