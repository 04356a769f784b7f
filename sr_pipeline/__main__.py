"""``python -m sr_pipeline`` is ``sr-pipeline``."""

from sr_pipeline.cli import main

if __name__ == "__main__":
    main()
