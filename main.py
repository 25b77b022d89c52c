"""The command line of hierjax; `python main.py --help` says what it can do."""

from hierjax import cli

if __name__ == '__main__':
  cli.main()
