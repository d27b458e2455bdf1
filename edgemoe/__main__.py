"""`python -m edgemoe` is the command `edgemoe`."""

from edgemoe.cli import entry

if __name__ == "__main__":
    entry()
