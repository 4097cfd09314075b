"""``python -m lowrank_speech``: the command line, as ``lowrank-speech``."""

from lowrank_speech.cli import main

if __name__ == "__main__":
    main()
