"""The command line of the harness: `python run_bench.py --help`."""

from harness.cli import main

if __name__ == "__main__":
    main()
