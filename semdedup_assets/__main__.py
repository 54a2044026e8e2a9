"""`python -m semdedup_assets`: the command line."""

from semdedup_assets.command_line.app import main

if __name__ == "__main__":
    main()
