"""`python -m adalink_jax` is the command `adalink`."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    print(
        "error: adalink_jax needs Python 3.11 or later, and this is",
        sys.version.split()[0],
        file=sys.stderr,
    )
    sys.exit(2)

from adalink_jax import cli, pages  # noqa: E402


def main() -> int:
    """Runs the command of this process; returns its exit code."""
    if sys.argv[1:2] == ["train"]:
        pages.restart_with_huge()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
